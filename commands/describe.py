"""Bundles in words."""

from __future__ import annotations

from ..runtime.manifest import Manifest, Verification


def verification_line(record: Verification | None) -> str:
    """A verification's figures on one line."""
    if record is None:
        return "not verified against PyTorch"
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in record.figures.items())
    return f"{'agrees' if record.passed else 'DOES NOT AGREE'} with PyTorch: {figures}"


def _figure(value: float) -> str:
    return f"{value:.7f}" if 0.99 < value < 1 else f"{value:.3g}"


def describe(manifest: Manifest, sha256: str) -> list[str]:
    """What a bundle holds, a line a fact."""
    model, reflection = manifest.model, manifest.reflection
    size = sum(entry.size for entry in manifest.files.values())
    steps = (
        f"{reflection.image_steps} for images, {reflection.video_steps} for video"
        if reflection
        else "none: a plain Qwen2.5-VL"
    )
    lines = {
        "checkpoint": f"{manifest.source.name} ({manifest.source.dtype}, {manifest.source.fingerprint[:12]})",
        "runs on": f"{manifest.target}, {manifest.precision}, "
        + ", ".join(f"{k} {v} or newer" for k, v in manifest.engine.items()),
        "decoder": f"{model.layers} layers, hidden {model.hidden}, {model.kv_heads} KV heads of {model.head_dim}, vocabulary {model.vocab}",
        "context": f"{model.max_context} tokens",
        "reflection": steps,
        "video": f"{manifest.video.fps:g} frames/s, {manifest.video.max_frames} at most, {manifest.video.total_pixels // 784} tokens of 28 x 28 px x 2 frames",
        "images": f"{manifest.image.min_pixels} to {manifest.image.max_pixels} px",
        "verified": verification_line(manifest.verification),
        "size": f"{size / 1e6:.1f} MB in {len(manifest.files)} files",
        "sha256": sha256,
    }
    return [f"{name:11} {text}" for name, text in lines.items()]
