"""Products by blocks of 8- and 4-bit weights, and look-ups in such tables: ONNX Runtime's operators on any device."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import Array, add_initializer, data
from .quantized_linears import BITS, QuantizedLinear, QuantizedTable, pack_blocks

MICROSOFT = "com.microsoft"


def block_product(
    graph: ir.Graph, linear: QuantizedLinear, block: int, bias: ir.Value | None, level: int = 0
) -> ir.Node:
    """MatMulNBits in place of a Linear's product. `block` is what shares a scale; `level` is its accuracy_level."""
    packed = PackedWeight(linear.weight, linear.scale, linear.input_axis, linear.block, block)
    weight = packed.weight_initializer(graph, (packed.rows, packed.blocks, packed.bytes))
    inputs = [linear.x, weight, packed.scale_initializer(graph)]
    sizes = {"K": linear.inputs, "N": linear.outputs, "bits": packed.bits, "block_size": packed.block}
    return ir.node(
        "MatMulNBits",
        [*inputs, None, None, bias] if bias is not None else inputs,
        sizes | ({"accuracy_level": level} if level else {}),
        domain=MICROSOFT,
        name=f"{linear.name}/MatMulNBits",
    )


def fp8_product(graph: ir.Graph, linear: QuantizedLinear, block: int) -> ir.Node:
    """MatMulBlockQuantizedFp8Weight in place of a Linear's product; the activation is not rounded. CUDA only."""
    packed = PackedWeight(linear.weight, linear.scale, linear.input_axis, linear.block, block)
    inputs = [linear.x, packed.row_initializer(graph), packed.scale_initializer(graph, ir.DataType.FLOAT)]
    name = "MatMulBlockQuantizedFp8Weight"
    return ir.node(name, inputs, {"block_size": block}, domain=MICROSOFT, name=f"{linear.name}/{name}")


def block_look_up(graph: ir.Graph, table: QuantizedTable, block: int) -> ir.Value:
    """Rows of a table; the columns that fill up its last block are cut off."""
    packed = PackedWeight(table.weight, table.scale, 1, table.block, block)
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


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Everything that reads the old value, the graph's caller included, reads the new one under the same name."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = f"{old.name}_replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class PackedWeight:
    """A weight and its scales in the layout of the kernels that read blocks: rows are output channels or tokens.

    `stored` inputs share a scale (0: a whole row does), the kernel is told that `block` do: scales are repeated.
    """

    def __init__(self, weight: ir.Value, scale: ir.Value, input_axis: int, stored: int, block: int) -> None:
        shape = weight.shape.numpy() if weight.shape else ()
        self.weight, self.scale, self.input_axis, self.stored = weight, scale, input_axis, stored
        self.rows, self.inputs = shape[1 - input_axis], shape[input_axis]
        self.bits, self.block = BITS[weight.dtype or ir.DataType.UNDEFINED], block
        self.blocks, self.bytes = -(-self.inputs // self.block), self.block * self.bits // 8

    def weight_initializer(self, graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
        """uint8, the bytes of [rows, blocks, bytes] in another shape."""

        def packed() -> Array:
            numbers = data(self.weight).astype(np.int8)
            return pack_blocks(self._by_row(numbers), self.bits, self.block).reshape(shape)

        return add_initializer(graph, f"{self.weight.name}_packed", ir.DataType.UINT8, shape, packed)

    def row_initializer(self, graph: ir.Graph) -> ir.Value:
        """The numbers as they are, [rows, inputs]."""

        def rows() -> Array:
            return np.ascontiguousarray(self._by_row(data(self.weight)))

        dtype = self.weight.dtype or ir.DataType.UNDEFINED
        return add_initializer(graph, f"{self.weight.name}_packed", dtype, (self.rows, self.inputs), rows)

    def scale_initializer(self, graph: ir.Graph, dtype: ir.DataType | None = None) -> ir.Value:
        """[rows, blocks], in the type that they are stored in or another one."""
        dtype = dtype or self.scale.dtype or ir.DataType.FLOAT

        def repeated() -> Array:
            scales = data(self.scale).astype(dtype.numpy())
            if scales.ndim == 1:
                return np.repeat(scales[:, None], self.blocks, axis=1)
            return np.repeat(self._by_row(scales), self.stored // self.block, axis=1)[:, : self.blocks]

        return add_initializer(graph, f"{self.scale.name}_packed", dtype, (self.rows, self.blocks), repeated)

    def _by_row(self, numbers: Array) -> Array:
        return numbers if self.input_axis == 1 else numbers.T


def _constant(graph: ir.Graph, name: str, value: int) -> ir.Value:
    return add_initializer(graph, name, ir.DataType.INT64, (1,), lambda: np.array([value], np.int64))
