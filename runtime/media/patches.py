"""Pixels to patches, in the order that Qwen2.5-VL's vision encoder takes them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..engine import Array
from .budget import PatchLayout, Size


def resize(picture: Image.Image, size: Size) -> Array:
    """An RGB picture resized with Pillow's antialiased bicubic filter: uint8 [height, width, 3]."""
    height, width = size
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def patchify(frames: Array, layout: PatchLayout) -> Array:
    """One temporal grid: frames uint8 [temporal, H, W, 3] -> patches uint8 [N, 3 * temporal * patch * patch].

    Patches of a merge group stand side by side, groups in raster order; a patch's values go by channel, frame, row and
    column (transformers' Qwen2VLImageProcessor).
    """
    count, height, width, channels = frames.shape
    patch, merge = layout.patch, layout.merge
    rows, columns = height // patch // merge, width // patch // merge
    cut = frames.reshape(count, rows, merge, patch, columns, merge, patch, channels)
    # frame, group row, row, y, group column, column, x, channel -> group, patch, then the values
    ordered = cut.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return np.ascontiguousarray(ordered).reshape(rows * columns * merge**2, channels * count * patch**2)
