"""Initializers that are computed from other initializers while the bundle is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def data(value: ir.Value) -> Array:
    """An initializer's numbers, read and computed now."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no data; bind the weights first")
    return value.const_value.numpy()


def derive(value: ir.Value, compute: Callable[[Array], Array]) -> None:
    """Replace an initializer's numbers by a function of them, of the same shape and type."""
    before = value.const_value
    if before is None:
        raise ValueError(f"{value.name} has no data; bind the weights first")

    def load() -> ir.TensorProtocol:
        return ir.tensor(compute(before.numpy()), dtype=before.dtype, name=value.name)

    value.const_value = ir.LazyTensor(load, dtype=before.dtype, shape=ir.Shape(before.shape.numpy()), name=value.name)


def add_initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], Array]
) -> ir.Value:
    """A new initializer, or the one that is there by this name."""
    if name in graph.initializers:
        return graph.initializers[name]

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(compute()), dtype=dtype, name=name)

    lazy = ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value
