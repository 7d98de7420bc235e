"""Images through Pillow: checked by their header, turned upright, flattened to RGB."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ..engine import Array
from ..errors import LimitError, MediaError
from .budget import ImageBudget, MediaLimits, PatchLayout, smart_resize
from .patches import patchify, resize
from .sniff import check_unchanged, shown, stamp

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "MPO")
"""Those that `sniff` knows, so that Pillow tries no other (it hands PostScript to Ghostscript)."""
ORIENTATION_TAG = 0x0112
TURNED = range(5, 9)  # EXIF orientations that swap height and width
WHITE = (255, 255, 255)

# Where nobody has set up logging, Python would print what Pillow logs about odd files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageMedium:
    """One image; its pixels are decoded when `patches` is called."""

    kind: Literal["image"] = "image"
    frames = 1
    second_per_grid = 0.0

    def __init__(self, path: Path, layout: PatchLayout, budget: ImageBudget, limits: MediaLimits) -> None:
        self.path, self._layout, self._stamp = path, layout, stamp(path)
        with _quiet(), open_image(path, limits) as picture:
            width, height = _upright_size(picture)
            frames = _frames(picture)
        self._size = _fit(path, height, width, layout, budget)
        self._limits = limits
        self.warnings: tuple[str, ...] = (f"only the first of {frames} pictures is read",) if frames > 1 else ()

    @property
    def grid(self) -> tuple[int, int, int]:
        """One temporal grid; height and width in patches."""
        return 1, self._size[0] // self._layout.patch, self._size[1] // self._layout.patch

    @property
    def visual_tokens(self) -> int:
        """Embeddings that the vision encoder will make of it."""
        return self.grid[1] * self.grid[2] // self._layout.merge**2

    def patches(self, grids_per_chunk: int) -> Iterator[Array]:  # noqa: ARG002  # an image is one grid
        """The image as one temporal grid of equal frames: patches uint8 [1, N, values]. Raises MediaError."""
        for picture in self.decoded():
            pixels = resize(picture, self._size)
            yield patchify(np.broadcast_to(pixels, (self._layout.temporal, *pixels.shape)), self._layout)[None]

    def decoded(self) -> Iterator[Image.Image]:
        """The picture, upright in RGB and of its own size. Raises MediaError."""
        check_unchanged(self.path, self._stamp)
        yield read_rgb(self.path, self._limits)


def open_image(path: Path, limits: MediaLimits) -> Image.Image:
    """Read an image's header. Raises MediaError, or LimitError before pixels are decoded."""
    try:
        picture = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise LimitError(f"{shown(path)}: {error}; scale it down first") from None
    except Exception as error:  # Pillow's plug-ins raise what they like on broken headers
        raise MediaError(f"{shown(path)} cannot be read as an image ({_short(error)}); save it anew") from None
    pixels = picture.width * picture.height
    if pixels > limits.image_pixels:
        picture.close()
        raise LimitError(
            f"{shown(path)} has {pixels / 1e6:.0f} megapixels, "
            f"the limit is {limits.image_pixels / 1e6:.0f}; scale it down"
        )
    return picture


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings of bombs (our own limit follows) and of odd EXIF blocks off the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_rgb(path: Path, limits: MediaLimits) -> Image.Image:
    """An image upright in RGB: alpha over white, 16 bits cut to 8. Raises MediaError where it is damaged."""
    with _quiet(), open_image(path, limits) as picture:
        try:
            picture.load()
            with suppress(Exception):  # a broken EXIF block says nothing about the pixels
                ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
        except Exception as error:  # as above: any codec's own error
            raise MediaError(f"{shown(path)} is damaged ({_short(error)}); save it anew") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(picture)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        background = Image.new("RGB", layered.size, WHITE)
        background.paste(layered, mask=layered.getchannel("A"))
        return background
    return picture.convert("RGB")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as `exif_transpose` will leave them."""
    if picture.format == "TIFF":  # Pillow gives and loads it upright
        return picture.size
    orientation = None
    with suppress(Exception):  # a broken EXIF block says nothing about the size
        orientation = picture.getexif().get(ORIENTATION_TAG)
    return (picture.height, picture.width) if orientation in TURNED else picture.size


def _frames(picture: Image.Image) -> int:
    if picture.format == "MPO":  # a phone's photo with its preview or depth, not a film
        return 1
    with suppress(Exception):  # counting reads on to the end, which may be damaged
        return int(getattr(picture, "n_frames", 1))
    return 1


def _fit(path: Path, height: int, width: int, layout: PatchLayout, budget: ImageBudget) -> tuple[int, int]:
    try:
        return smart_resize(height, width, layout.factor, min(budget.min_pixels, budget.max_pixels), budget.max_pixels)
    except MediaError as error:
        raise MediaError(f"{shown(path)}: {error}") from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
