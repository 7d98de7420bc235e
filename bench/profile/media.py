"""Media to profile with: made up of noise at any size, or a file; decoding is timed apart from resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from ...runtime.engine import Array
from ...runtime.errors import LimitError
from ...runtime.manifest import Manifest
from ...runtime.media import Media, MediaLimits, PatchLayout, VideoBudget, patchify, smart_resize
from ...runtime.media.budget import Size, frame_size
from ...runtime.media.patches import resize
from ...runtime.options import MediaOptions
from ...runtime.session import Model

T = TypeVar("T")

NOISE_FRAMES = 4  # different frames of a made-up video, shown in turn: resizing and encoding cost the same on any


@dataclass(frozen=True)
class Synthetic:
    """Frames of width x height pixels; one frame is an image, more are a video. Raises LimitError as a file's would."""

    frames: int
    width: int
    height: int

    def __post_init__(self) -> None:
        limits = MediaLimits()
        most = limits.image_pixels if self.frames == 1 else limits.frame_pixels
        if self.width * self.height > most:
            raise LimitError(
                f"--size {self.width}x{self.height} is over the limit of {most / 1e6:.0f} megapixels; pass less"
            )


class SyntheticMedia:
    """Noise as a runtime medium: nothing is decoded, but every frame is resized and cut into patches."""

    path = Path("synthetic")
    warnings: tuple[str, ...] = ()

    def __init__(self, size: Synthetic, manifest: Manifest) -> None:
        model = manifest.model
        self._layout = PatchLayout(model.patch, model.temporal_patch, model.merge)
        self.frames = size.frames
        self.kind: Literal["image", "video"] = "video" if size.frames > 1 else "image"
        self.second_per_grid = 1.0 if self.kind == "video" else 0.0
        self._size = _target(size, manifest, self._layout)
        self._noise = _noise(size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal grids, height and width in patches."""
        grids = -(-self.frames // self._layout.temporal)
        return grids, self._size[0] // self._layout.patch, self._size[1] // self._layout.patch

    @property
    def visual_tokens(self) -> int:
        """Embeddings that the vision encoder will make of it."""
        grids, height, width = self.grid
        return grids * height * width // self._layout.merge**2

    def patches(self, grids_per_chunk: int) -> Iterator[Array]:
        """Patches uint8 [G, N, values], `grids_per_chunk` temporal grids at a time."""
        frames = self.decoded()
        for first in range(0, self.grid[0], grids_per_chunk):
            count = min(grids_per_chunk, self.grid[0] - first)
            yield np.stack([self._grid(frames) for _ in range(count)])

    def decoded(self) -> Iterator[Image.Image]:
        """As many frames as asked for; an odd last one is repeated."""
        for number in range(self.grid[0] * self._layout.temporal):
            yield self._noise[min(number, self.frames - 1) % len(self._noise)]

    def _grid(self, frames: Iterator[Image.Image]) -> Array:
        pictures = [resize(next(frames), self._size) for _ in range(self._layout.temporal)]
        return patchify(np.stack(pictures), self._layout)


@lru_cache(maxsize=1)
def _noise(size: Synthetic) -> list[Image.Image]:
    """The different frames, made once: no round is to pay for what no user has to wait for."""
    random = np.random.default_rng(0)
    shape = (min(size.frames, NOISE_FRAMES), size.height, size.width, 3)
    return [Image.fromarray(frame) for frame in random.integers(0, 256, shape, dtype=np.uint8)]


def _target(size: Synthetic, manifest: Manifest, layout: PatchLayout) -> Size:
    if size.frames == 1:
        budget = manifest.image
        return smart_resize(size.height, size.width, layout.factor, budget.min_pixels, budget.max_pixels)
    video = manifest.video
    limits = VideoBudget(video.fps, video.max_frames, video.min_pixels, video.max_pixels, video.total_pixels)
    return frame_size(size.height, size.width, size.frames, layout.factor, limits)


Source = Path | Synthetic


def open_medium(model: Model, source: Source) -> Media:
    """A fresh medium of a source, as the runtime would open it."""
    if isinstance(source, Path):
        return model.open_medium(source, MediaOptions())
    return SyntheticMedia(source, model.manifest)


class DecodeTimer:
    """Seconds spent inside a medium's decoder, wherever its frames are asked for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, medium: Any) -> None:
        """Time the medium's `decoded` from now on."""
        if hasattr(medium, "decoded"):
            # On this object only: its `patches` calls its own `decoded`, which is now timed.
            medium.decoded = self._timed(medium.decoded)

    def _timed(self, frames: Callable[[], Iterator[T]]) -> Callable[[], Iterator[T]]:
        def timed() -> Iterator[T]:
            items = frames()
            while True:
                start = perf_counter()
                item = next(items, None)
                self.seconds += perf_counter() - start
                if item is None:
                    return
                yield item

        return timed
