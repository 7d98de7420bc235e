"""A decoder's weights as the kernels of `step.cu` take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import BundleError
from ..kernels.arguments import FLOATS, FP8, GATE_UP, INT4, INT8, LANE, QKV, RESIDUAL, ROW, SEGMENT, WHOLE
from ..manifest import ModelFacts, StepForm, StepLayer, StepLinear
from .device_memory import DeviceBuffer

SEGMENT_LOADS, PART_LOADS = 4, 8
"""Loads of 16 bytes: of what four threads take of a row at a time, and of a row's smallest part."""
ELEMENTS = {FLOATS: 8, INT8: 16, FP8: 16, INT4: 32}
"""Numbers in a load."""
TILE_ROWS = 16


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

    def kernels(self) -> Iterator[tuple[str, int]]:
        """Instances that it needs, and what each is for."""
        for matrix, kind in ((self.qkv, QKV), (self.output, RESIDUAL), (self.gate, GATE_UP), (self.down, RESIDUAL)):
            yield matrix.kernel(kind), kind


def layer_weights(names: StepLayer, weights: Mapping[str, DeviceBuffer], model: ModelFacts, form: StepForm) -> Layer:
    """A layer's weights by the names in the manifest. Raises BundleError where a name or a shape does not fit."""
    gate = _matrix(names.gate, weights, model.hidden)
    return Layer(
        weight_named(weights, names.norm),
        _matrix(names.qkv, weights, model.hidden),
        weight_named(weights, names.bias),
        _matrix(names.output, weights, form.heads * model.head_dim),
        weight_named(weights, names.mlp_norm),
        gate,
        _matrix(names.up, weights, model.hidden),
        _matrix(names.down, weights, gate.rows),
        tuple(weight_named(weights, name) for name in names.cache_scales),
    )


def weight_named(weights: Mapping[str, DeviceBuffer], name: str) -> DeviceBuffer:
    """A weight; BundleError where there is none of that name."""
    if name not in weights:
        raise BundleError(f"the manifest's steps read {name}, which is no weight of theirs; export the bundle again")
    return weights[name]


def _matrix(names: StepLinear, weights: Mapping[str, DeviceBuffer], inputs: int) -> Matrix:
    weight = weight_named(weights, names.weight)
    scales = weight_named(weights, names.scales) if names.scales else None
    rows = weight.shape[0]
    bits = 8 * weight.nbytes // (rows * inputs)
    kinds = {("float8e4m3fn", 8): FP8, ("uint8", 8): INT8, ("uint8", 4): INT4}
    kind = kinds.get((weight.dtype, bits)) if scales else FLOATS
    if kind is None or inputs % (PART_LOADS * ELEMENTS[kind]) or rows % TILE_ROWS:
        raise BundleError(f"no kernel multiplies by {names.weight}; export the bundle again")
    return Matrix(weight, scales, inputs, kind, inputs // scales.shape[1] if scales else inputs)
