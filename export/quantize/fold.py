"""Apply a recipe's folds: scale channels between what writes an activation and what reads it, for no extra operator."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ...runtime.errors import ExportError
from ..recipe import Fold
from .lazy import Array, derive


def apply_folds(model: ir.Model, folds: Iterable[Fold]) -> None:
    """Every fold whose source is in this graph. Weights are [in, out]. Raises ExportError where shapes disagree."""
    weights = model.graph.initializers
    for fold in folds:
        if fold.source not in weights:
            continue
        _divide(weights[fold.source], fold)
        bias = fold.source.removesuffix("weight") + "bias"
        if bias in weights:
            _divide(weights[bias], fold)
        for reader in fold.readers:
            if reader not in weights:
                raise ExportError(f"the recipe folds into {reader}, which {model.graph.name} lacks; calibrate again")
            _multiply(weights[reader], fold)


def reader_factors(fold: Fold) -> Array:
    """Factors by row of a reading weight, float32 [blocks * repeat * width]."""
    blocks = np.array(fold.factors, np.float32).reshape(-1, 1, fold.width)
    return np.repeat(blocks, fold.repeat, axis=1).ravel()


def _divide(value: ir.Value, fold: Fold) -> None:
    """A norm's weight or a bias [channels], or a Linear's weight [in, channels]."""
    factors = np.array(fold.factors, np.float32)
    last = fold.first + len(factors)
    _check(value, value.shape[-1] if value.shape else 0, last, exact=False)
    derive(value, lambda numbers: _divided(numbers, factors, fold.first, last))


def _divided(numbers: Array, factors: Array, first: int, last: int) -> Array:
    scaled = numbers.copy()
    scaled[..., first:last] = (scaled[..., first:last].astype(np.float32) / factors).astype(numbers.dtype)
    return scaled


def _multiply(value: ir.Value, fold: Fold) -> None:
    factors = reader_factors(fold)[:, None]
    _check(value, value.shape[0] if value.shape else 0, len(factors), exact=True)
    derive(value, lambda numbers: (numbers.astype(np.float32) * factors).astype(numbers.dtype))


def _check(value: ir.Value, size: object, wanted: int, exact: bool) -> None:
    if not isinstance(size, int) or (size != wanted if exact else size < wanted):
        raise ExportError(f"the recipe folds {wanted} channels into {value.name}, which has {size}; calibrate again")
