"""Arguments of the kernels in `step.cu` and `mlp.cu`, field by field, and the numbers that stand for kinds there."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint64

FLOATS, INT8, FP8, INT4 = range(4)
"""What a matrix or a cache holds."""
QKV, RESIDUAL, GATE_UP = range(3)
"""What a product is for."""
WHOLE, ROW, SEGMENT, LANE = range(4)
"""What shares a scale: nothing has one, all of a row, 64 bytes of it or more, less."""
INNER_STEP = 64.0
"""What an MLP's inner numbers are divided by where they are multiplied in fp16."""

ADDRESS, PAIR = c_uint64, c_uint64 * 2


class Mail(ctypes.Structure):
    """What is another at each step: numbers, and where embeddings are and the hidden state goes."""

    _fields_ = (
        ("past_length", c_int64),
        ("embeddings", ADDRESS),
        ("hidden_post_norm", ADDRESS),
        ("positions", c_int64 * 24),
    )


class Begin(ctypes.Structure):
    """Embeddings to residual, positions to angles."""

    _fields_ = tuple((name, ADDRESS) for name in ("mail", "frequencies", "axes", "residual", "turns"))


class Finish(ctypes.Structure):
    """The final norm."""

    _fields_ = tuple((name, ADDRESS) for name in ("residual", "norm", "mail"))


class Product(ctypes.Structure):
    """A product, with what comes before and behind it."""

    _fields_ = (
        ("weight", PAIR),
        ("scales", PAIR),
        ("inputs", c_int),
        ("pairs", c_int),
        ("of_tile", c_int),
        ("blocks", c_int),
        ("shift", c_int),
        ("step", c_float),
        ("out_half", c_int),
        ("x", ADDRESS),
        ("residual", ADDRESS),
        ("norm", ADDRESS),
        ("out", ADDRESS),
        ("bias", ADDRESS),
        ("turns", ADDRESS),
        ("past_length", ADDRESS),
        ("cache", PAIR),
        ("cache_scales", PAIR),
        ("capacity", c_int),
    )


class Attention(ctypes.Structure):
    """Attention over the cache."""

    _fields_ = (
        ("queries", ADDRESS),
        ("cache", PAIR),
        ("cache_scales", PAIR),
        ("past_length", ADDRESS),
        ("capacity", c_int),
        ("sums", ADDRESS),
        ("shares", ADDRESS),
        ("tickets", ADDRESS),
        ("out", ADDRESS),
        ("out_half", c_int),
    )


class Round(ctypes.Structure):
    """Numbers to fp8, eight at a time."""

    _fields_ = (("x", ADDRESS), ("out", ADDRESS), ("count", c_int64), ("by", c_float))


class Inner(ctypes.Structure):
    """Gate and up to what `down_proj` reads in fp8, eight numbers at a time."""

    _fields_ = (("x", ADDRESS), ("out", ADDRESS), ("count", c_int64), ("width", c_int), ("by", c_float))


class Norm(ctypes.Structure):
    """The final norm of many rows."""

    _fields_ = (("x", ADDRESS), ("norm", ADDRESS), ("out", ADDRESS), ("width", c_int), ("epsilon", c_float))


class Segments(ctypes.Structure):
    """Attention of the vision encoder."""

    _fields_ = (
        ("qkv", ADDRESS),
        ("cos", ADDRESS),
        ("sin", ADDRESS),
        ("ends", ADDRESS),
        ("out", ADDRESS),
        ("patches", c_int),
        ("blocks", c_int),
    )
