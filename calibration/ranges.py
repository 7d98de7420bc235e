"""From observed activations to the range that a static scale covers.

minmax and the searches of percentile and entropy are ONNX Runtime's (`onnxruntime.quantization`); mse is ours, it has
none. Every source (text, visual, hidden) is judged by itself and the widest range is taken: reflection has few rows,
and a range that fits the many visual ones would cut it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from ..export.quantize.qdq import TYPES, NumberType
from .observations import Array
from .sources import Kind

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
BINS = {"percentile": 2048, "entropy": 512}
"""Of histograms. With 256, ONNX Runtime's search for the least entropy cuts no lone spike; more take it minutes."""
QUANTIZED_BINS = 128
"""Levels of one sign in 8 bits, ONNX Runtime's own default."""
SHRINKS = np.linspace(0.2, 1.0, 33)
"""Shares of the largest magnitude that `mse` tries."""


def input_range(method: Method, scheme: str, rows: Mapping[Kind, Array], largest: float) -> float:
    """The magnitude that a tensor's scale is to reach; `rows` [kept, channels] by source, `largest` over everything.

    Never above `largest`; for `minmax` just that.
    """
    if method == "minmax" or not rows:
        return largest
    find: dict[str, Callable[[Array], float]] = {
        "percentile": lambda seen: _collected("percentile", seen),
        "entropy": lambda seen: _collected("entropy", seen),
        "mse": lambda seen: _least_error(seen, TYPES[scheme]),
    }
    return min(largest, max(find[method](seen) for seen in rows.values()))


def input_scale(reach: float, scheme: str) -> float:
    """Real value of one step (int8) or of 1.0 (fp8); 1 for a tensor that is always zero."""
    return reach / TYPES[scheme].limit if reach > 0 else 1.0


def _collected(method: str, rows: Array) -> float:
    """ONNX Runtime's threshold for these numbers."""
    symmetric = method == "percentile"
    collector = HistogramCollector(method, symmetric, BINS[method], QUANTIZED_BINS, PERCENTILE, "same")
    numbers = rows.astype(np.float32, copy=False)
    if not numbers.any():
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        collector.collect({"x": numbers})
        low, high = collector.compute_collection_result()["x"][:2]
    return float(max(abs(low), abs(high)))


def _least_error(rows: Array, kind: NumberType) -> float:
    """The reach with the least mean square error of rounding and cutting."""
    numbers = rows.astype(np.float32, copy=False).ravel()
    most = float(np.abs(numbers).max())
    if most == 0:
        return 0.0
    errors = [_error(numbers, np.array(share * most / kind.limit, np.float32), kind) for share in SHRINKS]
    return float(SHRINKS[int(np.argmin(errors))] * most)


def _error(numbers: Array, scale: Array, kind: NumberType) -> float:
    rounded = kind.quantize(numbers, scale).astype(np.float32) * scale
    return float(np.square(rounded - numbers).mean())
