"""How large a picture may be after resizing, how many frames a video gives, and what is refused before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, sqrt

from ..errors import MediaError, UsageError

MAX_ASPECT = 200  # Qwen2-VL's image processor refuses a longer side of 200 times the shorter
FRAME_PIXELS = 768 * 784  # per-frame cap and
FLOOR_SLACK = 1.05  # slack over the floor, both from qwen-vl-utils 0.0.14 (VIDEO_MAX_PIXELS, fetch_video)

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class PatchLayout:
    """Side of a patch in pixels, frames of a temporal patch, side of a merge group in patches."""

    patch: int = 14
    temporal: int = 2
    merge: int = 2

    @property
    def factor(self) -> int:
        """Every side is a multiple of this, in pixels."""
        return self.patch * self.merge


@dataclass(frozen=True)
class ImageBudget:
    """Pixels of one image after resizing; Qwen2.5-VL's defaults."""

    min_pixels: int = 4 * 784
    max_pixels: int = 16_384 * 784

    def __post_init__(self) -> None:
        _check_positive("max_pixels", self.max_pixels)


@dataclass(frozen=True)
class VideoBudget:
    """Sampling and pixels of a video; the authors' evaluation of long videos."""

    fps: float = 2.0
    max_frames: int = 512
    min_pixels: int = 64 * 784
    max_pixels: int = 460_800
    total_pixels: int = 20_000 * 784

    def __post_init__(self) -> None:
        for name in ("fps", "max_frames", "max_pixels", "total_pixels"):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True)
class MediaLimits:
    """What is refused before it is decoded."""

    image_pixels: int = 100_000_000
    """A picture of that size takes 400 MB as RGBA."""
    frame_pixels: int = 35_651_584
    """8K video (8192 x 4352), the largest frame of H.264 and HEVC level 6.2."""
    frames: int = 10_000_000
    """Four days at 30 frames a second; an index of that many takes 160 MB."""
    decode_threads: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """1080p H.264 decoded 192 frames/s with 1, 584 with 8 and 766 with 16 threads; each holds frames of its own."""
    resize_threads: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    """Making a frame of 1080p small takes 14 to 21 ms, three times its decoding; each holds two pictures."""


def smart_resize(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> Size:
    """The size, in multiples of `factor`, nearest to the picture's own within the budget; keeps the aspect ratio.

    Source: qwen-vl-utils 0.0.14, which the authors' evaluation goes through; it differs from transformers' function of
    this name for sides under half of `factor`. Raises MediaError where one side is 200 times the other or more.
    """
    if max(height, width) >= MAX_ASPECT * min(height, width):
        raise MediaError(
            f"{width} x {height} px is too long and thin; sides may differ up to {MAX_ASPECT} times, crop it"
        )
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = sqrt(height * width / max_pixels)
        rows, columns = (max(factor, floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = sqrt(min_pixels / (height * width))
        rows, columns = (ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def frame_size(height: int, width: int, frames: int, factor: int, budget: VideoBudget) -> Size:
    """The size of each of `frames` sampled frames: all of them share `total_pixels` (two frames make one grid)."""
    share = budget.total_pixels / max(1, frames) * 2
    cap = min(budget.max_pixels, max(min(FRAME_PIXELS, share), int(budget.min_pixels * FLOOR_SLACK)))
    return smart_resize(height, width, factor, min(budget.min_pixels, cap), cap)


def _check_positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value}; pass a number above 0")
