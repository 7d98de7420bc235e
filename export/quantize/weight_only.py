"""Weights alone in 8 or 4 bits, activations untouched, in standard ONNX form:

    MatMul(x, DequantizeLinear(W int8 | int4 [in, out], scale [out], axis=1))
    MatMul(x, DequantizeLinear(W int8 | int4 [in, out], scale [ceil(in / block), out], axis=0, block_size=block))
    Gather(DequantizeLinear(W int8 | int4 [rows, width], scale ...), ids)

The head's weight is [out, in], its scales with it; so is the token table's, and a tied pair is quantized to the same
bytes. 8 bits by channel use the whole range (`qdq.py`); blocks' scales are searched for (`rounding.py`). Numbers and
scales are computed while the bundle is written. Why no library: onnxruntime's matmul_nbits_quantizer holds the model's
weights in memory and writes one engine's operator, nvidia-modelopt wants the model in torch; neither reads lazily.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...runtime.errors import ExportError, NumericError
from ..recipe import LinearRecipe
from .lazy import Array, add_initializer, data
from .linears import Linear
from .qdq import WHOLE_RANGE_INT8
from .rounding import as_stored, fit_scales, round_weight

BITS = {"int8-weights": 8, "int4-weights": 4}
DTYPES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
NUMPY = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4)}


class RoundedWeight:
    """A float weight to be stored in few bits: its scales are found once, its numbers whenever they are asked for.

    Scales are stored in `dtype`, and numbers are multiples of what is stored: a scale that bfloat16 has shortened by
    0.2 % would make all of a channel wrong by that.
    """

    def __init__(self, weight: ir.Value, input_axis: int, bits: int, block: int, dtype: np.dtype[np.generic]) -> None:
        self.weight, self.input_axis, self.bits, self.block, self.dtype = weight, input_axis, bits, block, dtype

    @cached_property
    def scales(self) -> Array:
        """float32 [out, ceil(in / block)], each one a number of `dtype`."""
        rows = self._rows()
        if not np.isfinite(rows).all():
            raise NumericError(f"{self.weight.name} has NaN or infinity; check the checkpoint")
        whole = self.bits == 8 and not self.block
        scales = WHOLE_RANGE_INT8.scale(rows, 1)[:, None] if whole else fit_scales(rows, self.bits, self.block)
        return as_stored(scales, self.dtype).astype(np.float32)

    def numbers(self) -> Array:
        """Integers in the weight's own layout."""
        rounded = round_weight(self._rows(), self.scales, self.bits, self.block)
        return self._laid_out(rounded).astype(NUMPY[self.bits])

    def stored_scales(self) -> Array:
        """Scales in the layout that DequantizeLinear reads, [out] without blocks."""
        scales = self._laid_out(self.scales) if self.block else self.scales[:, 0]
        return scales.astype(self.dtype)

    def _rows(self) -> Array:
        """[out, in]."""
        return self._laid_out(data(self.weight))

    def _laid_out(self, numbers: Array) -> Array:
        """From the weight's layout to [out, in] or back."""
        return numbers if self.input_axis == 1 else numbers.T


def quantize_weights(model: ir.Model, linears: Mapping[str, tuple[Linear, LinearRecipe]]) -> None:
    """Store these Linears' weights in few bits, by the name of their weight."""
    for linear, recipe in linears.values():
        node = _dequantize(model.graph, linear.weight, linear.input_axis, recipe)
        model.graph.insert_before(linear.node, node)
        linear.read(linear.x, node.outputs[0])


def quantize_tables(model: ir.Model, tables: Mapping[str, tuple[ir.Node, LinearRecipe]]) -> None:
    """Store these tables [rows, width], which Gather reads, in few bits, by the name of the table."""
    for gather, recipe in tables.values():
        table = gather.inputs[0]
        if table is None:
            raise ValueError(f"{gather.name} reads no table")
        node = _dequantize(model.graph, table, 1, recipe)
        model.graph.insert_before(gather, node)
        gather.replace_input_with(0, node.outputs[0])


def _dequantize(graph: ir.Graph, weight: ir.Value, input_axis: int, recipe: LinearRecipe) -> ir.Node:
    """A DequantizeLinear, not placed yet, over new initializers for `weight`."""
    if recipe.scheme not in BITS:
        raise ExportError(f"{weight.name} cannot be stored as {recipe.scheme}; calibrate again")
    bits, block = BITS[recipe.scheme], recipe.block
    shape, dtype = weight.shape.numpy() if weight.shape else (), weight.dtype or ir.DataType.FLOAT
    rounded = RoundedWeight(weight, input_axis, bits, block, dtype.numpy())
    scale_shape = _scale_shape(shape, input_axis, block)
    stored = add_initializer(graph, f"{weight.name}_quantized", DTYPES[bits], shape, rounded.numbers)
    scales = add_initializer(graph, f"{weight.name}_scale", dtype, scale_shape, rounded.stored_scales)
    attributes = {"axis": input_axis, "block_size": block} if block else {"axis": 1 - input_axis}
    name = str(weight.name).removesuffix(".weight")
    node = ir.node("DequantizeLinear", [stored, scales], attributes, name=f"{name}/DequantizeLinear")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{weight.name}_dequantized", weight.shape, ir.TensorType(dtype)
    return node


def _scale_shape(shape: tuple[int, ...], input_axis: int, block: int) -> tuple[int, ...]:
    inputs, outputs = shape[input_axis], shape[1 - input_axis]
    if not block:
        return (outputs,)
    blocks = -(-inputs // block)
    return (outputs, blocks) if input_axis == 1 else (blocks, outputs)
