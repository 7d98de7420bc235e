"""The quantized Linears and tables of a portable graph, as lowerings find them, and the packed forms kernels read.

    x -> [QuantizeLinear -> DequantizeLinear ->] MatMul( , DequantizeLinear(W [in, out], scale)) [-> Add(bias)]
    Gather(DequantizeLinear(W [rows, width], scale), ids)

The head is a Gemm with its weight [out, in]. Scales go by output channel, or by block of the input axis. Symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import Array

BITS = {ir.DataType.INT8: 8, ir.DataType.INT4: 4, ir.DataType.FLOAT8E4M3FN: 8}


@dataclass(frozen=True)
class QuantizedLinear:
    """One product by a quantized weight."""

    node: ir.Node
    """The MatMul or Gemm."""
    x: ir.Value
    """The float activation, before any rounding."""
    input_scale: ir.Value | None
    """Scale [] of the rounded activation; None where only the weight is quantized."""
    weight: ir.Value
    """Initializer: int8, int4 or float8e4m3fn, [in, out] ([out, in] for a Gemm)."""
    scale: ir.Value
    """Initializer: [out], or with blocks [ceil(in / block), out] (the Gemm's [out, ceil(in / block)])."""
    input_axis: int
    """The weight's axis that is summed over."""
    block: int
    """Inputs that share a scale; 0: all of them."""
    bias: ir.Node | None
    """The Add that gives the bias, where that is all that reads the product."""

    @property
    def name(self) -> str:
        """The checkpoint's name of the layer."""
        return str(self.weight.name).removesuffix("_quantized").removesuffix(".weight")

    @property
    def dtype(self) -> ir.DataType:
        """The weight's stored type."""
        if self.weight.dtype is None:
            raise ValueError(f"{self.weight.name} has no type")
        return self.weight.dtype

    @property
    def inputs(self) -> int:
        """Length of the axis that is summed over."""
        return _size(self.weight, self.input_axis)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return _size(self.weight, 1 - self.input_axis)

    @property
    def bias_value(self) -> ir.Value | None:
        """The bias [out], if one is added."""
        if self.bias is None:
            return None
        return next(value for value in self.bias.inputs if value is not None and value.is_initializer())

    @property
    def result(self) -> ir.Value:
        """What the Linear gives, bias included: replace its uses, then drop `nodes`."""
        return (self.bias or self.node).outputs[0]

    @property
    def nodes(self) -> list[ir.Node]:
        """The product and its bias, in reading order; Q/DQ nodes before them fall to the removal of unused nodes."""
        return [self.node, self.bias] if self.bias else [self.node]


def find_quantized_linears(model: ir.Model) -> Iterator[QuantizedLinear]:
    """Every quantized Linear in the order that they run. Do not edit the graph while iterating: list them first."""
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain or len(node.inputs) < 2:
            continue
        x, dequantized = node.inputs[0], node.inputs[1]
        source = _producer(dequantized, "DequantizeLinear")
        if x is None or source is None:
            continue
        weight, scale = source.inputs[0], source.inputs[1]
        if weight is None or scale is None or not weight.is_initializer() or not scale.is_initializer():
            continue
        floating, input_scale = _before_rounding(x)
        input_axis = 1 if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1 else 0
        block = source.attributes.get_int("block_size", 0)
        yield QuantizedLinear(node, floating, input_scale, weight, scale, input_axis, block, _bias(node))


@dataclass(frozen=True)
class QuantizedTable:
    """A look-up of rows in a quantized table."""

    node: ir.Node
    """The Gather."""
    ids: ir.Value
    weight: ir.Value
    """Initializer: int8 or int4, [rows, width]."""
    scale: ir.Value
    """Initializer: [rows], or with blocks [rows, ceil(width / block)]."""
    block: int
    """Columns that share a scale; 0: all of them."""

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return _size(self.weight, 0)

    @property
    def width(self) -> int:
        """Columns of the table."""
        return _size(self.weight, 1)


def find_quantized_tables(model: ir.Model) -> Iterator[QuantizedTable]:
    """Every look-up in a quantized table. Do not edit the graph while iterating: list them first."""
    for node in model.graph:
        source = _producer(node.inputs[0], "DequantizeLinear") if node.op_type == "Gather" and not node.domain else None
        if source is None or node.inputs[1] is None:
            continue
        weight, scale = source.inputs[0], source.inputs[1]
        if weight is None or scale is None or not weight.is_initializer() or not scale.is_initializer():
            continue
        yield QuantizedTable(node, node.inputs[1], weight, scale, source.attributes.get_int("block_size", 0))


def pack_blocks(weight: Array, bits: int, block: int) -> Array:
    """Signed numbers [out, in] as uint8 [out, ceil(in / block), block * bits / 8], offset by 2 ** (bits - 1).

    Blocks are filled up with zeros; of two 4-bit numbers the first is in the low nibble.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    offset = 1 << (bits - 1)
    padded = np.full((outputs, blocks * block), offset, np.uint8)
    padded[:, :inputs] = (weight.astype(np.int16) + offset).astype(np.uint8)
    packed = pack_nibbles(padded) if bits == 4 else padded
    return packed.reshape(outputs, blocks, -1)


def pack_nibbles(numbers: Array) -> Array:
    """uint8 numbers below 16 [..., 2 n] as bytes [..., n], the first in the low nibble."""
    packed: Array = numbers[..., ::2] | (numbers[..., 1::2] << 4)
    return packed


def _before_rounding(x: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """The float value behind Q/DQ and its scale; the value itself and None where there is no Q/DQ."""
    back = _producer(x, "DequantizeLinear")
    rounding = _producer(back.inputs[0], "QuantizeLinear") if back else None
    if rounding is None or rounding.inputs[0] is None:
        return x, None
    return rounding.inputs[0], rounding.inputs[1]


def _bias(node: ir.Node) -> ir.Node | None:
    """The Add of an initializer [out] that alone reads this product."""
    readers = list(node.outputs[0].consumers())
    if len(readers) != 1 or node.outputs[0].is_graph_output():
        return None
    biased = readers[0].op_type == "Add" and any(_is_vector(value) for value in readers[0].inputs)
    return readers[0] if biased else None


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape else None
    if not isinstance(size, int):
        raise ValueError(f"{value.name} has no fixed shape")
    return size
