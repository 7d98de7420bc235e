"""Bundles in words."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..runtime.manifest import Manifest, Verification

INDENT = 12
"""Columns before a fact."""


def verification_line(record: Verification | None) -> str:
    """A verification's figures on one line."""
    if record is None:
        return "not verified"
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in record.figures.items())
    against = "float32's answers" if "agreement" in record.figures else "PyTorch"
    return f"{'agrees' if record.passed else 'DOES NOT AGREE'} with {against}: {figures}"


def _figure(value: float) -> str:
    return f"{value:.7f}" if 0.99 < value < 1 else f"{value:.3g}"


def describe(manifest: Manifest, sha256: str) -> list[str]:
    """What a bundle holds, a line a fact."""
    model, source, video, image = manifest.model, manifest.source, manifest.video, manifest.image
    pixels_per_token = (model.patch * model.merge) ** 2 * model.temporal_patch
    size = sum(entry.size for entry in manifest.files.values())
    library = ", ".join(f"{name} {version} or newer" for name, version in manifest.engine.items())
    lines = {
        "checkpoint": f"{source.name} ({source.dtype}, {source.fingerprint[:12]})",
        "runs on": f"{manifest.target}, {manifest.precision}, {library}",
        "quantized": _quantized(manifest),
        "decoder": f"{model.layers} layers of {model.hidden}, {model.kv_heads} KV heads of {model.head_dim}",
        "vocabulary": f"{model.vocab} rows",
        "context": f"{model.max_context} tokens",
        "reflection": _reflection(manifest),
        "video": f"{video.fps:g} frames/s, at most {video.max_frames} frames or "
        f"{video.total_pixels * model.temporal_patch // pixels_per_token} visual tokens",
        "images": f"{image.min_pixels} to {image.max_pixels} px",
        "plans": _plans(manifest),
        "verified": verification_line(manifest.verification),
        "size": f"{size / 1e6:.1f} MB in {len(manifest.files)} files",
        "sha256": sha256,
    }
    return [f"{name:{INDENT - 1}} {text}" for name, text in lines.items()]


def _plans(manifest: Manifest) -> str:
    """What TensorRT plans there are, by machine."""
    found = sorted({f"{plan.architecture} with {plan.library} {plan.version}" for plan in manifest.plans})
    if not found and manifest.target.startswith("tensorrt"):
        return "none yet: run `reflectrt build` where the GPU is"
    return ", ".join(found) or "none"


def _quantized(manifest: Manifest) -> str:
    """Layers by scheme, and what the ranges come from."""
    if manifest.recipe is None:
        return "no"
    try:
        return _recipe(manifest.recipe)
    except (AttributeError, KeyError, TypeError, ValueError):  # free data of whoever wrote the manifest
        return "by a recipe that this version cannot read"


def _recipe(recipe: dict[str, Any]) -> str:
    schemes: Counter[str] = Counter()
    for graph in recipe.get("graphs", {}).values():
        schemes.update(graph["schemes"])
    layers = ", ".join(f"{count} layers {scheme}" for scheme, count in schemes.items())
    origin = recipe.get("origin")
    if not origin:
        return layers
    smooth = "no smoothing" if origin["smooth"] is None else f"smoothing {origin['smooth']}"
    return f"{layers}; {origin['method']} over {origin['samples']} samples, {smooth}"


def _reflection(manifest: Manifest) -> str:
    reflection = manifest.reflection
    if reflection is None:
        return "none: a plain Qwen2.5-VL"
    return f"{reflection.image_steps} steps for images, {reflection.video_steps} for video, {reflection.head} head"
