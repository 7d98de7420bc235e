"""What a needle looks like: six shapes, eight colours, ten digits, drawn the same on every CPU.

Everything is integer: shapes are polygons on a grid of 4 sub-pixels, digits are 5 x 7 bitmaps scaled by whole
numbers, edges are mixed with integer weights. So a seed gives the same bytes wherever it is drawn.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "green": (36, 158, 60),
    "blue": (44, 84, 224),
    "yellow": (244, 222, 40),
    "purple": (150, 52, 190),
    "orange": (244, 136, 28),
    "white": (248, 248, 248),
    "black": (20, 20, 20),
}

# Corners in thousandths of the sprite's side, (x, y); the disc alone is no polygon.
POLYGONS: dict[str, tuple[tuple[int, int], ...]] = {
    "square": ((80, 80), (920, 80), (920, 920), (80, 920)),
    "triangle": ((500, 20), (990, 960), (10, 960)),
    "diamond": ((500, 0), (1000, 500), (500, 1000), (0, 500)),
    "cross": (
        (280, 20), (720, 20), (720, 280), (980, 280), (980, 720), (720, 720),
        (720, 980), (280, 980), (280, 720), (20, 720), (20, 280), (280, 280),
    ),
    "star": (
        (500, 0), (640, 340), (1000, 370), (725, 605), (810, 960),
        (500, 770), (190, 960), (275, 605), (0, 370), (360, 340),
    ),
}  # fmt: skip
SHAPES = ("disc", *POLYGONS)

# Rows of five pixels, most significant bit left.
DIGITS = (
    (14, 17, 19, 21, 25, 17, 14), (4, 12, 4, 4, 4, 4, 14), (14, 17, 1, 6, 8, 16, 31), (30, 1, 1, 14, 1, 1, 30),
    (2, 6, 10, 18, 31, 2, 2), (31, 16, 30, 1, 1, 17, 14), (6, 8, 16, 30, 17, 17, 14), (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14), (14, 17, 17, 15, 1, 2, 12),
)  # fmt: skip

SUPERSAMPLE = 4
DARK_INK, LIGHT_INK = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Thing:
    """One needle or distractor: its shape, its colour and the digit written on it, if any."""

    shape: str
    colour: str
    digit: int | None = None

    @property
    def name(self) -> str:
        """How questions call it."""
        return f"{self.colour} {self.shape}"


@lru_cache(maxsize=4096)
def sprite(thing: Thing, side: int) -> tuple[Pixels, Pixels]:
    """Draw a thing `side` pixels wide: colours uint8 [side, side, 3] and cover uint8 [side, side, 1]."""
    outer, inner = _mask(thing.shape, side, 0), _mask(thing.shape, side, 2)
    fill = COLOURS[thing.colour]
    light = sum(fill) > 380
    rim = DARK_INK if light else LIGHT_INK
    colours = _mix(np.array(rim, np.uint16), np.array(fill, np.uint16), inner)
    if thing.digit is not None:
        _write_digit(colours, thing.digit, DARK_INK if light else LIGHT_INK)
    return colours, outer


def paste(canvas: Pixels, thing: Thing, box: tuple[int, int, int, int]) -> None:
    """Draw a thing over `canvas` (uint8 [H, W, 3], changed in place); the square box must lie inside."""
    x0, y0, x1, y1 = box
    colours, cover = sprite(thing, x1 - x0)
    region = canvas[y0:y1, x0:x1]
    region[:] = _mix(region.astype(np.uint16), colours.astype(np.uint16), cover)


def _mix(below: NDArray[np.uint16], above: NDArray[np.uint16], cover: Pixels) -> Pixels:
    weight = cover.astype(np.uint16)
    return ((below * (255 - weight) + above * weight + 127) // 255).astype(np.uint8)


def _mask(shape: str, side: int, inset: int) -> Pixels:
    """Cover of a shape in 0..255, uint8 [side, side, 1], shrunk by `inset` pixels on every side."""
    full, margin = side * SUPERSAMPLE, inset * SUPERSAMPLE
    image = Image.new("L", (full, full))
    draw = ImageDraw.Draw(image)
    if shape == "disc":
        draw.ellipse((margin, margin, full - 1 - margin, full - 1 - margin), fill=255)
    else:
        span = full - 1 - 2 * margin
        draw.polygon([(margin + x * span // 1000, margin + y * span // 1000) for x, y in POLYGONS[shape]], fill=255)
    return np.asarray(image.reduce(SUPERSAMPLE))[:, :, None]


def _write_digit(colours: Pixels, digit: int, ink: tuple[int, int, int]) -> None:
    """Write a digit, about half the sprite high, a little below the middle (a triangle is wide there)."""
    side = colours.shape[0]
    scale = max(1, side // 12)
    bits = np.array([[row >> (4 - column) & 1 for column in range(5)] for row in DIGITS[digit]], bool)
    bits = bits.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = bits.shape
    top, left = (side - height) // 2 + side // 16, (side - width) // 2
    colours[top : top + height, left : left + width][bits] = ink
