"""Static quantization (int8, fp8) in its standard ONNX form, which every target's lowering knows:

    x -> QuantizeLinear(scale [], 0) -> DequantizeLinear -> MatMul( , DequantizeLinear(W int8 [in, out], scale [out]))

Symmetric: per tensor for activations, with the recipe's scale; per output channel for weights, whose scales a target
may want to be all the same (`FP8_BY_TENSOR`). fp8 weights have the largest magnitude of what shares a scale at the
type's largest number, int8 weights the largest sum of two neighbours:
x86 processors without VNNI add two products of a uint8 activation and an int8 weight in 16 bits and saturate, which
2 * 255 * 127 does. With sums up to 128 none saturates; the step grows by a third on normal weights of 900 rows. On the
tests' random decoder saturation turned an error of 4 % into 14 %. The head [out, in] is run by blocks, in 32 bits, and
needs no such room (`lower/cpu_quantized.py`). Bias, norms and attention stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...runtime.errors import ExportError, NumericError
from ..recipe import LinearRecipe
from .lazy import Array, add_initializer, data
from .linears import Linear
from .rounding import as_stored

CHANNELS_AT_ONCE = 4096
"""Of a large vocabulary: working on all of it at once would take several copies of the largest matrix."""


@dataclass(frozen=True)
class NumberType:
    """A quantized number type: the largest magnitude that scales map to."""

    dtype: ir.DataType
    limit: float
    numpy: np.dtype[np.generic]
    pairs: bool
    """Whether `limit` also bounds the sum of two neighbouring weights along the input axis."""
    by_tensor: bool = False
    """Whether all channels of a weight have the scale of the one with the largest numbers."""

    def quantize(self, numbers: Array, scale: Array) -> Array:
        """Numbers divided by their scale, rounded to nearest even and saturated."""
        scaled = numbers.astype(np.float32, copy=False) / scale
        np.clip(scaled, -self.limit, self.limit, out=scaled)
        if self.dtype == ir.DataType.INT8:
            np.rint(scaled, out=scaled)
        return scaled.astype(self.numpy)

    def scale(self, numbers: Array, axis: int) -> Array:
        """Scale [channels] for which the largest magnitude along `axis` just fits; 1 where all are zero."""
        channels = np.moveaxis(numbers, axis, 0)
        parts = range(0, channels.shape[1], CHANNELS_AT_ONCE)
        largest = np.concatenate([self._largest(channels[:, i : i + CHANNELS_AT_ONCE]) for i in parts])
        if not np.isfinite(largest).all():
            raise NumericError("a weight has NaN or infinity; check the checkpoint")
        if self.by_tensor:
            largest = np.full_like(largest, largest.max())
        return np.where(largest > 0, largest / self.limit, 1.0).astype(np.float32)

    def _largest(self, channels: Array) -> Array:
        """What the limit bounds in numbers [in, channels], by channel."""
        floats = channels.astype(np.float32)
        largest: Array = (_pair_sums(floats) if self.pairs else np.abs(floats)).max(axis=0)
        return largest


def _pair_sums(numbers: Array) -> Array:
    """Largest magnitude of the positive or the negative ones of weights (2i, 2i + 1) along axis 0, summed."""
    padded = np.concatenate((numbers, np.zeros_like(numbers[: len(numbers) % 2])))
    first, second = padded[::2], padded[1::2]
    sums: Array = np.maximum(np.abs(first + second), np.maximum(np.abs(first), np.abs(second)))
    return sums


TYPES = {
    # -128 has no opposite: left out. Rounding may add 1 to a pair's 127.
    "int8": NumberType(ir.DataType.INT8, 127.0, np.dtype(np.int8), pairs=True),
    "fp8": NumberType(ir.DataType.FLOAT8E4M3FN, 448.0, np.dtype(ml_dtypes.float8_e4m3fn), pairs=False),
}

WHOLE_RANGE_INT8 = replace(TYPES["int8"], pairs=False)
"""For kernels that do not saturate in between: weights alone, and the head, which shares a tied table's bytes."""

FP8_BY_TENSOR = TYPES | {"fp8": replace(TYPES["fp8"], by_tensor=True)}
"""For kernels with one scale a weight. It costs no digits: fp8 has as many from its limit down to 1/28,000 of it."""


def quantize_static(
    model: ir.Model, linears: Mapping[str, tuple[Linear, LinearRecipe]], types: Mapping[str, NumberType] = TYPES
) -> None:
    """Put Q/DQ around these Linears, by the name of their weight. Those that read one value share its Q/DQ."""
    activations: dict[tuple[str, float, str], ir.Value] = {}
    for linear, recipe in linears.values():
        if recipe.input_scale is None:
            raise ExportError(f"{linear.weight.name} has no input_scale in the recipe; calibrate again")
        key = (str(linear.x.name), recipe.input_scale, recipe.scheme)
        if key not in activations:
            activations[key] = _rounded(model.graph, linear, recipe.input_scale, types[recipe.scheme])
        by_blocks = recipe.scheme == "int8" and linear.input_axis == 1
        weight = _weight(model.graph, linear, WHOLE_RANGE_INT8 if by_blocks else types[recipe.scheme])
        linear.read(activations[key], weight)


def _rounded(graph: ir.Graph, linear: Linear, scale: float, kind: NumberType) -> ir.Value:
    """`x` quantized and dequantized, just before the Linear that reads it."""
    dtype = linear.weight.dtype or ir.DataType.FLOAT
    name = f"{linear.name}.input"
    step = add_initializer(graph, f"{name}_scale", dtype, (), lambda: np.array(scale, dtype.numpy()))
    zero = add_initializer(graph, f"{name}_zero_point", kind.dtype, (), lambda: np.array(0, kind.numpy))
    quantize = ir.node("QuantizeLinear", [linear.x, step, zero], name=f"{name}/QuantizeLinear")
    back = ir.node("DequantizeLinear", [quantize.outputs[0], step, zero], name=f"{name}/DequantizeLinear")
    for node, value_dtype in ((quantize, kind.dtype), (back, dtype)):
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].shape, node.outputs[0].type = linear.x.shape, ir.TensorType(value_dtype)
    graph.insert_before(linear.node, [quantize, back])
    return back.outputs[0]


def _weight(graph: ir.Graph, linear: Linear, kind: NumberType) -> ir.Value:
    """The weight in `kind` with a scale by output channel, dequantized."""
    weight, rows = linear.weight, linear.input_axis
    shape, dtype = weight.shape.numpy() if weight.shape else (), weight.dtype or ir.DataType.FLOAT
    channels = shape[1 - rows]

    def scale(numbers: Array) -> Array:
        return as_stored(kind.scale(numbers, rows), dtype.numpy())

    def quantized() -> Array:  # by the scale as it is stored: bfloat16 shortens it by up to 0.2 %
        numbers = data(weight)
        return kind.quantize(numbers, np.expand_dims(scale(numbers).astype(np.float32), rows))

    steps = add_initializer(graph, f"{weight.name}_scale", dtype, (channels,), lambda: scale(data(weight)))
    stored = add_initializer(graph, f"{weight.name}_quantized", kind.dtype, shape, quantized)
    node = ir.node("DequantizeLinear", [stored, steps], {"axis": 1 - rows}, name=f"{linear.name}/DequantizeLinear")
    node.outputs[0].name = f"{weight.name}_dequantized"
    node.outputs[0].shape, node.outputs[0].type = weight.shape, ir.TensorType(dtype)
    graph.insert_before(linear.node, [node])
    return node.outputs[0]
