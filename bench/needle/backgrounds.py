"""Photographs and filmed clips behind the needles; training and evaluation never share one.

Files live in `assets/backgrounds/<split>/`: `*.jpg` are photographs, folders are clips (numbered JPEG frames).
Photographs are grown once to a few canvas sizes; an item then cuts a window out, so no item resizes anything.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from .palette import Pixels

Split = Literal["train", "eval"]

FOLDER = Path(__file__).parents[2] / "assets" / "backgrounds"
CANVASES = ((728, 588), (1372, 1148), (2268, 1820))  # width, height: the smallest that covers is used
CLIP_CANVAS = (392, 308)


@dataclass(frozen=True)
class Background:
    """A window into a photograph or clip: its top left corner, a mirror flag, and the pan of a still."""

    split: Split
    name: str
    canvas: tuple[int, int]
    left: int
    top: int
    mirrored: bool
    channels: tuple[int, int, int] = (0, 1, 2)
    start: int = 0
    pan: tuple[int, int] = (0, 0)

    def window(self, width: int, height: int, frame: int = 0) -> Pixels:
        """The window's pixels at a frame number, a fresh uint8 [height, width, 3]."""
        source = _source(self.split, self.name, self.canvas, self.start + frame)
        left = min(max(self.left + self.pan[0] * frame // 16, 0), source.shape[1] - width)
        top = min(max(self.top + self.pan[1] * frame // 16, 0), source.shape[0] - height)
        cut = source[top : top + height, left : left + width]
        cut = cut[:, ::-1] if self.mirrored else cut
        return np.ascontiguousarray(cut if self.channels == (0, 1, 2) else cut[:, :, list(self.channels)])


def photograph(random: Random, split: Split, width: int, height: int) -> Background:
    """Choose a photograph and a window of it. Training also swaps colour channels: few photographs, more variety."""
    canvas = next(size for size in CANVASES if size[0] >= width and size[1] >= height)
    name = random.choice(_names(split, clips=False))
    channels = [0, 1, 2]
    if split == "train":
        random.shuffle(channels)
    return Background(
        split, name, canvas, random.randint(0, canvas[0] - width), random.randint(0, canvas[1] - height),
        random.random() < 0.5, (channels[0], channels[1], channels[2]),
    )  # fmt: skip


def clip(random: Random, split: Split, width: int, height: int) -> Background:
    """Choose a filmed clip, or (two in five) a slow pan over a photograph."""
    if random.random() < 0.4:
        still = photograph(random, split, width, height)
        pan = (random.randint(-24, 24), random.randint(-16, 16))
        return Background(
            split, still.name, still.canvas, still.left, still.top, still.mirrored, still.channels, 0, pan
        )
    name = random.choice(_names(split, clips=True))
    left, top = random.randint(0, CLIP_CANVAS[0] - width), random.randint(0, CLIP_CANVAS[1] - height)
    return Background(split, name, CLIP_CANVAS, left, top, random.random() < 0.5, start=random.randrange(1000))


@cache
def _names(split: Split, clips: bool) -> tuple[str, ...]:
    entries = sorted((FOLDER / split).iterdir())
    return tuple(entry.name for entry in entries if entry.is_dir() == clips)


def _source(split: Split, name: str, canvas: tuple[int, int], frame: int) -> Pixels:
    if name.endswith(".jpg"):
        return _photograph(split, name, canvas)
    frames = _clip(split, name, canvas)
    lap = frame % (2 * len(frames) - 2)  # to and fro, so that the clip never jumps
    return frames[min(lap, 2 * len(frames) - 2 - lap)]


@cache
def _photograph(split: Split, name: str, canvas: tuple[int, int]) -> Pixels:
    return _cover(FOLDER / split / name, canvas)


@cache
def _clip(split: Split, name: str, canvas: tuple[int, int]) -> tuple[Pixels, ...]:
    return tuple(_cover(path, canvas) for path in sorted((FOLDER / split / name).glob("*.jpg")))


def _cover(path: Path, canvas: tuple[int, int]) -> Pixels:
    """Grow or shrink a picture until it covers the canvas, and cut the middle out: uint8 [H, W, 3]."""
    picture = Image.open(path).convert("RGB")
    wide, high = canvas
    across = picture.width * high <= picture.height * wide  # the width is what falls short
    size = (
        (wide, -(-picture.height * wide // picture.width))
        if across
        else (-(-picture.width * high // picture.height), high)
    )
    grown = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (grown.width - wide) // 2, (grown.height - high) // 2
    return np.asarray(grown.crop((left, top, left + wide, top + high)))
