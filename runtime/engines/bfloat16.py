"""bfloat16 without a library: the upper half of a float32."""

from __future__ import annotations

import numpy as np

from ..engine import Array

DTYPE = np.dtype("V2")
"""numpy has no bfloat16: two bytes that nobody can compute with by mistake."""


def to_float32(halves: Array) -> Array:
    """The numbers whose upper halves these are (uint16)."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def from_float32(values: Array) -> Array:
    """Upper halves (uint16) of numbers, rounded to the nearest, to even where two are as near; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
