"""Quantized Linears for ONNX Runtime's CPU provider.

    int8 activations and weights  ->  QuantizeLinear (uint8, shared by what reads x) -> MatMulIntegerToFloat with bias
    weights alone, and the head   ->  MatMulNBits (8 or 4 bits; accuracy_level 4: it rounds activations by block itself)
    the token table               ->  GatherBlockQuantized, over the very bytes of a tied head
    float8                        ->  left as it is: dequantized while loading, to measure its accuracy anywhere

One W8A8 form serves prefill and single steps over one copy of the weights: measured with ONNX Runtime 1.32 on AVX2,
it is 1.95 times as fast as float32 at 1,024 rows, where MatMulNBits is 0.6 to 1.1 times, and no slower than that at one
row (`docs/quantization_speed.md`). Activations are unsigned because no kernel for signed ones comes with x86's integer
instructions before AVX-VNNI-INT8: there they run 6 times slower.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..quantize.lazy import Array, add_initializer, data
from .quantized_linears import (
    BITS,
    QuantizedLinear,
    QuantizedTable,
    find_quantized_linears,
    find_quantized_tables,
    pack_blocks,
)

MICROSOFT = "com.microsoft"
ZERO_POINT = 128
CHANNEL_BLOCK = 128
"""Inputs of a block where a whole channel shares its scale, which the kernel cannot say: it is then repeated."""
INT8_COMPUTE = 4
"""MatMulNBits' accuracy level that multiplies integers; the others dequantize weights, 20 to 60 times slower."""


def lower_quantized(model: ir.Model) -> None:
    """Rewrite the quantized Linears and tables of a portable graph in place."""
    rounded: dict[tuple[str, str], ir.Value] = {}
    for linear in list(find_quantized_linears(model)):
        if linear.dtype == ir.DataType.FLOAT8E4M3FN:
            continue
        static = linear.input_scale is not None and linear.input_axis == 0
        node = _integer_product(model.graph, linear, rounded) if static else _block_product(model.graph, linear)
        _take_over(linear.result, node.outputs[0])
    for table in list(find_quantized_tables(model)):
        _take_over(table.node.outputs[0], _look_up(model.graph, table))
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)


def _integer_product(graph: ir.Graph, linear: QuantizedLinear, rounded: dict[tuple[str, str], ir.Value]) -> ir.Node:
    if linear.input_scale is None:
        raise ValueError(f"{linear.name} has no input scale")
    key = (str(linear.x.name), str(linear.input_scale.name))
    if key not in rounded:
        rounded[key] = _rounded(graph, linear, linear.input_scale)
    zero = _zero_point(graph)
    node = ir.node(
        "MatMulIntegerToFloat",
        [rounded[key], linear.weight, linear.input_scale, linear.scale, zero, None, linear.bias_value],
        domain=MICROSOFT,
        name=f"{linear.name}/MatMulIntegerToFloat",
    )
    return _placed(graph, linear, node)


def _rounded(graph: ir.Graph, linear: QuantizedLinear, scale: ir.Value) -> ir.Value:
    """`x` as uint8 around 128, just before the first Linear that reads it."""
    node = ir.node("QuantizeLinear", [linear.x, scale, _zero_point(graph)], name=f"{linear.name}/QuantizeLinear")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{node.name}_output", linear.x.shape, ir.TensorType(ir.DataType.UINT8)
    graph.insert_before(linear.node, node)
    return output


def _zero_point(graph: ir.Graph) -> ir.Value:
    return add_initializer(
        graph, "activation_zero_point", ir.DataType.UINT8, (), lambda: np.array(ZERO_POINT, np.uint8)
    )


def _block_product(graph: ir.Graph, linear: QuantizedLinear) -> ir.Node:
    packed = _PackedWeight(linear.weight, linear.scale, linear.input_axis, linear.block)
    weight = packed.weight_initializer(graph, (packed.rows, packed.blocks, packed.bytes))
    node = ir.node(
        "MatMulNBits",
        [linear.x, weight, packed.scale_initializer(graph), None, None, linear.bias_value],
        {
            "K": linear.inputs,
            "N": linear.outputs,
            "bits": packed.bits,
            "block_size": packed.block,
            "accuracy_level": INT8_COMPUTE,
        },
        domain=MICROSOFT,
        name=f"{linear.name}/MatMulNBits",
    )
    return _placed(graph, linear, node)


def _look_up(graph: ir.Graph, table: QuantizedTable) -> ir.Value:
    """Rows of a table; the columns that fill up its last block are cut off."""
    packed = _PackedWeight(table.weight, table.scale, 1, table.block)
    weight = packed.weight_initializer(graph, (packed.rows, packed.blocks * packed.bytes))
    attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": packed.bits, "block_size": packed.block}
    node = ir.node(
        "GatherBlockQuantized",
        [weight, table.ids, packed.scale_initializer(graph)],
        attributes,
        domain=MICROSOFT,
        name=f"{table.node.name}BlockQuantized",
    )
    graph.insert_before(table.node, node)
    if packed.blocks * packed.block == table.width:
        return node.outputs[0]
    ends = [_constant(graph, name, value) for name, value in (("first", 0), ("width", table.width), ("last_axis", -1))]
    cut = ir.node("Slice", [node.outputs[0], *ends])
    graph.insert_before(table.node, cut)
    return cut.outputs[0]


def _constant(graph: ir.Graph, name: str, value: int) -> ir.Value:
    return add_initializer(graph, name, ir.DataType.INT64, (1,), lambda: np.array([value], np.int64))


class _PackedWeight:
    """A weight and its scales in the layout of the kernels that read blocks: rows are output channels or tokens."""

    def __init__(self, weight: ir.Value, scale: ir.Value, input_axis: int, block: int) -> None:
        shape = weight.shape.numpy() if weight.shape else ()
        self.weight, self.scale, self.input_axis = weight, scale, input_axis
        self.rows, inputs = shape[1 - input_axis], shape[input_axis]
        self.bits, self.block = BITS[weight.dtype or ir.DataType.UNDEFINED], block or CHANNEL_BLOCK
        self.blocks, self.bytes = -(-inputs // self.block), self.block * self.bits // 8

    def weight_initializer(self, graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
        """uint8, the bytes of [rows, blocks, bytes] in another shape."""

        def packed() -> Array:
            numbers = data(self.weight).astype(np.int8)
            return pack_blocks(self._by_row(numbers), self.bits, self.block).reshape(shape)

        return add_initializer(graph, f"{self.weight.name}_packed", ir.DataType.UINT8, shape, packed)

    def scale_initializer(self, graph: ir.Graph) -> ir.Value:
        """[rows, blocks]."""

        def repeated() -> Array:
            scales = data(self.scale)
            return np.repeat(scales[:, None], self.blocks, axis=1) if scales.ndim == 1 else self._by_row(scales)

        dtype, shape = self.scale.dtype or ir.DataType.FLOAT, (self.rows, self.blocks)
        return add_initializer(graph, f"{self.scale.name}_packed", dtype, shape, repeated)

    def _by_row(self, numbers: Array) -> Array:
        return numbers if self.input_axis == 1 else numbers.T


def _placed(graph: ir.Graph, linear: QuantizedLinear, node: ir.Node) -> ir.Node:
    """The node where the Linear's last one is."""
    graph.insert_before(linear.nodes[-1], node)
    return node


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Everything that reads the old value, the graph's caller included, reads the new one under the same name."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = f"{old.name}_replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
