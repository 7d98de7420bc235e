"""A decoder's weights as the kernels of `step.cu` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..engine import Array
from ..errors import BundleError
from ..kernels.arguments import FLOATS, FP8, GATE_UP, INT4, INT8, LANE, QKV, RESIDUAL, ROW, SEGMENT, WHOLE
from ..manifest import ModelFacts, StepForm, StepLayer, StepLinear
from .device_memory import DeviceBuffer

SEGMENT_LOADS, PART_LOADS = 4, 8
"""Loads of 16 bytes: of what four threads take of a row at a time, and of a row's smallest part."""
ELEMENTS = {FLOATS: 8, INT8: 16, FP8: 16, INT4: 32}
"""Numbers in a load."""
TILE_ROWS = 16
KINDS: dict[tuple[str, int, str | None], int] = {
    ("bfloat16", 16, None): FLOATS,
    ("float16", 16, None): FLOATS,
    ("float8e4m3fn", 8, "float32"): FP8,
    ("uint8", 8, "bfloat16"): INT8,
    ("uint8", 4, "bfloat16"): INT4,
}
"""What a matrix holds, by its type, its bits and its scales' type."""


@dataclass(frozen=True)
class Matrix:
    """One matrix [rows, inputs] on the device: what it holds, and how its scales [rows, inputs / block] go."""

    weight: DeviceBuffer
    scales: DeviceBuffer | None
    inputs: int
    format: int
    block: int

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.weight.shape[0]

    @property
    def shift(self) -> int:
        """How often a place in a row is halved to find its scale; meaningful where scales are of less than a row."""
        return self.block.bit_length() - 1

    @property
    def parts(self) -> int:
        """Of 128 bytes, in each row."""
        return self.inputs // (PART_LOADS * ELEMENTS[self.format])

    @property
    def scaling(self) -> int:
        """What shares a scale."""
        if self.scales is None:
            return WHOLE
        if self.block == self.inputs:
            return ROW
        return SEGMENT if self.block % (SEGMENT_LOADS * ELEMENTS[self.format]) == 0 else LANE

    def kernel(self, kind: int) -> str:
        """The instance that multiplies by it."""
        return f"product<{self.format}, {self.scaling}, {kind}>"


@dataclass(frozen=True)
class Layer:
    """A layer's weights on the device."""

    norm: DeviceBuffer
    qkv: Matrix
    bias: DeviceBuffer
    output: Matrix
    mlp_norm: DeviceBuffer
    gate: Matrix
    up: Matrix
    down: Matrix
    cache_scales: tuple[DeviceBuffer, ...]

    def products(self) -> tuple[tuple[Matrix, int], ...]:
        """Its matrices (gate for gate and up), and what each product is for."""
        return (self.qkv, QKV), (self.output, RESIDUAL), (self.gate, GATE_UP), (self.down, RESIDUAL)


def layer_weights(names: StepLayer, weights: Mapping[str, DeviceBuffer], model: ModelFacts, form: StepForm) -> Layer:
    """A layer's weights by the names in the manifest. Raises BundleError where a name or a shape does not fit."""
    hidden, width = model.hidden, form.heads * model.head_dim
    inner = weight_named(weights, names.gate.weight).shape[0]
    gate, up = (_matrix(linear, weights, inner, hidden) for linear in (names.gate, names.up))
    if (gate.format, gate.scaling, gate.block) != (up.format, up.scaling, up.block):
        raise BundleError(f"{names.gate.weight} and {names.up.weight} differ in format; export the bundle again")
    return Layer(
        weight_named(weights, names.norm),
        _matrix(names.qkv, weights, width + 2 * model.kv_heads * model.head_dim, hidden),
        weight_named(weights, names.bias),
        _matrix(names.output, weights, hidden, width),
        weight_named(weights, names.mlp_norm),
        gate,
        up,
        _matrix(names.down, weights, hidden, inner),
        tuple(weight_named(weights, name) for name in names.cache_scales),
    )


def one_a_row(scales: Array) -> Array | None:
    """Scales [rows, 1], on the host, of such [rows, blocks] that are the same all along each row; None for others."""
    if scales.ndim != 2 or scales.shape[1] < 2 or (scales[0] != scales[0, 0]).any():
        return None  # as a look at the first row shows of nearly all others
    column = scales[:, :1]
    return np.ascontiguousarray(column) if (scales == column).all() else None


def weight_named(weights: Mapping[str, DeviceBuffer], name: str) -> DeviceBuffer:
    """A weight; BundleError where there is none of that name."""
    if name not in weights:
        raise BundleError(f"the manifest's steps read {name}, which is no weight of theirs; export the bundle again")
    return weights[name]


def _matrix(names: StepLinear, weights: Mapping[str, DeviceBuffer], rows: int, inputs: int) -> Matrix:
    """A matrix [rows, inputs]. Raises BundleError where it is another, or stored as no kernel reads it."""
    weight = weight_named(weights, names.weight)
    scales = weight_named(weights, names.scales) if names.scales else None
    bits = 8 * weight.nbytes // (rows * inputs)
    kind = KINDS.get((weight.dtype, bits, scales.dtype if scales else None))
    blocks = scales.shape[1] if scales and len(scales.shape) == 2 else 1
    whole = kind is not None and inputs % (PART_LOADS * ELEMENTS[kind]) == 0 and rows % TILE_ROWS == 0
    fits = weight.shape[0] == rows and 8 * weight.nbytes == bits * rows * inputs
    block = inputs // blocks
    scaled = scales is None or (scales.shape == (rows, blocks) and inputs % blocks == 0)
    scaled = scaled and (blocks == 1 or block.bit_count() == 1)
    if kind is None or not (whole and fits and scaled):
        raise BundleError(f"no kernel multiplies by {names.weight}; export the bundle again")
    return Matrix(weight, scales, inputs, kind, block)
