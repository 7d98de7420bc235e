"""An ONNX graph as it is counted: nodes, and the shapes of its weights, which stay on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.engine import Array

SMALL = 64  # values up to so many elements are carried along: they are shapes and axes
BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor; `kind` is ONNX's element type, `weight` says that it is stored in the file."""

    shape: tuple[int, ...]
    kind: int
    value: Array | None = None
    weight: bool = False

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        bits = BITS.get(self.kind) or 8 * helper.tensor_dtype_to_np_dtype(self.kind).itemsize
        return -(-self.elements * bits // 8)

    @property
    def is_float(self) -> bool:
        """Whether arithmetic on it is floating-point."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.kind)).kind not in "iub"


@dataclass(frozen=True)
class Step:
    """One node with what goes in and comes out; an absent input is None."""

    op: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def input(self, place: int) -> Tensor:
        """An input that must be there."""
        tensor = self.inputs[place]
        if tensor is None:
            raise ValueError(f"{self.name}: {self.op} has no input {place}")
        return tensor


@dataclass(frozen=True)
class Graph:
    """A graph as it was read: no weights but the small ones."""

    nodes: Sequence[Any]
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, int]
    outputs: tuple[str, ...]


def read(file: Path, bound: Collection[str] = ()) -> Graph:
    """Read a graph's nodes and the shapes of its weights, which stay on disk; `bound` are inputs that are weights."""
    return from_model(onnx.load(str(file), load_external_data=False), bound)


def from_model(model: onnx.ModelProto, bound: Collection[str] = ()) -> Graph:
    """A graph from a model in memory."""
    weights = {tensor.name: _weight(tensor) for tensor in model.graph.initializer}
    weights |= {port.name: _bound_weight(port) for port in model.graph.input if port.name in bound}
    inputs = {port.name: port.type.tensor_type.elem_type for port in model.graph.input if port.name not in weights}
    return Graph(model.graph.node, weights, inputs, tuple(port.name for port in model.graph.output))


def _bound_weight(port: onnx.ValueInfoProto) -> Tensor:
    kind = port.type.tensor_type
    return Tensor(tuple(axis.dim_value for axis in kind.shape.dim), kind.elem_type, None, weight=True)


def _weight(tensor: TensorProto) -> Tensor:
    shape = tuple(tensor.dims)
    stored_here = tensor.data_location != TensorProto.EXTERNAL
    value = numpy_helper.to_array(tensor) if stored_here and prod(shape) <= SMALL else None
    return Tensor(shape, tensor.data_type, value, weight=True)
