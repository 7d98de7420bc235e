"""What a checkpoint says of itself, as frozen facts: sizes, constants and token ids, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of CLIP (arXiv 2103.00020), which every Qwen2.5-VL preprocessor_config.json repeats."""


@dataclass(frozen=True)
class TextFacts:
    """The language model (counts, except `rms_eps` and `rope_theta`)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    """Rows of the embedding table; tokenizers of this family use fewer."""
    rms_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Rotary frequencies turned by time, height and width; they sum to head_dim / 2."""
    tied: bool
    """Whether `lm_head` is the embedding table; then the checkpoint's tensors have no `lm_head.weight`."""
    max_positions: int
    hidden_act: str = "silu"


@dataclass(frozen=True)
class VisionFacts:
    """The vision encoder (counts; `window_px` in pixels; mean and std per channel, of pixels in [0, 1])."""

    depth: int
    hidden: int
    heads: int
    mlp: int
    patch: int
    temporal_patch: int
    merge: int
    window_px: int
    full_attention_blocks: tuple[int, ...]
    """Indices of the blocks that attend over a whole temporal grid; the others attend within windows."""
    out_hidden: int
    in_channels: int
    tokens_per_second: float
    rms_eps: float = 1e-6
    """Not in any config: 1e-6 is written in transformers' code."""
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD
    rope_theta: float = 10_000.0
    hidden_act: str = "silu"

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x temporal_patch x patch x patch (1176 for Qwen2.5-VL)."""
        return self.in_channels * self.temporal_patch * self.patch**2

    @property
    def window(self) -> int:
        """Side of a whole attention window in patches, a multiple of `merge` (8 for Qwen2.5-VL: 112 px)."""
        return self.window_px // self.merge // self.patch * self.merge


@dataclass(frozen=True)
class ReflectionFacts:
    """Token ids of `<BOR>`, `<VR>`, `<EOR>`, steps by medium, and the head that a fed-back state goes through."""

    begin_id: int
    step_id: int
    end_id: int
    image_steps: int
    video_steps: int
    head: Literal["identity", "linear", "mlp"]
    head_width: int = 0
    """Features between the two layers of an "mlp" head; 0 otherwise."""
    head_bias: bool = False
    """Whether the head's layers have biases (all of them, or none)."""


@dataclass(frozen=True)
class TokenFacts:
    """Ids of the special tokens that a prompt and its answer are made of."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    stop: tuple[int, ...]
    """What ends an answer: `<|im_end|>` first, then the other end tokens of generation_config.json."""


@dataclass(frozen=True)
class ImageBudget:
    """Pixels of one image after resizing, as preprocessor_config.json has them."""

    min_pixels: int
    max_pixels: int
