"""The published 7B model's shape, which timings need and weights do not."""

from __future__ import annotations

from ...export.facts import TextFacts, VisionFacts

# config.json of Qwen/Qwen2.5-VL-7B-Instruct, which shenxq/VisReflect-7B-Video repeats.
TEXT_7B = TextFacts(
    layers=28,
    hidden=3584,
    heads=28,
    kv_heads=4,
    head_dim=128,
    mlp=18_944,
    vocab=152_064,
    rms_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    tied=False,
    max_positions=128_000,
)
VISION_7B = VisionFacts(
    depth=32,
    hidden=1280,
    heads=16,
    mlp=3420,
    patch=14,
    temporal_patch=2,
    merge=2,
    window_px=112,
    full_attention_blocks=(7, 15, 23, 31),
    out_hidden=3584,
    in_channels=3,
    tokens_per_second=2.0,
)
MAX_CONTEXT = 65_536
