"""Weights of blocks that do not fill their axis, for TensorRT: its parser asks for whole blocks.

    x -> MatMul( , DequantizeLinear(W [in, out]))     ->  x -> Pad -> MatMul( , DequantizeLinear(W [whole, out]))
    ids -> Gather(DequantizeLinear(W [rows, width]))  ->  ids -> Gather(DequantizeLinear(W [rows, whole])) -> Slice

Qwen2.5-VL has two such axes, 1,176 values of a patch and the vision encoder's 3,420-wide MLP, in blocks of 32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import Array, add_initializer, data


def fill_blocks(model: ir.Model) -> None:
    """Pad such weights with zeros, and what they meet, in place."""
    for node in list(model.graph):
        block = node.attributes.get_int("block_size", 0) if node.op_type == "DequantizeLinear" else 0
        weight = node.inputs[0] if block else None
        if weight is None or weight.shape is None or not weight.is_initializer():
            continue
        axis = node.attributes.get_int("axis", 0)
        size = weight.shape.numpy()[axis]
        missing = -size % block
        if missing:
            _pad_weight(model.graph, node, weight, axis, missing)
            for reader in list(node.outputs[0].consumers()):
                _meet(model.graph, reader, size, missing)


def _pad_weight(graph: ir.Graph, node: ir.Node, weight: ir.Value, axis: int, missing: int) -> None:
    shape = list(weight.shape.numpy()) if weight.shape else []
    widths = [(0, missing if i == axis else 0) for i in range(len(shape))]
    shape[axis] += missing

    def padded() -> Array:
        return np.pad(data(weight), widths)

    dtype = weight.dtype or ir.DataType.UNDEFINED
    node.replace_input_with(0, add_initializer(graph, f"{weight.name}_whole", dtype, tuple(shape), padded))
    node.outputs[0].shape = ir.Shape(shape)
    del graph.initializers[str(weight.name)]


def _meet(graph: ir.Graph, reader: ir.Node, size: int, missing: int) -> None:
    """Make what reads a padded weight fit it."""
    if reader.op_type == "Gather":
        _cut_rows(graph, reader, size)
    else:
        _pad_input(graph, reader, missing)


def _pad_input(graph: ir.Graph, reader: ir.Node, missing: int) -> None:
    x = reader.inputs[0]
    if x is None or x.shape is None:
        raise ValueError(f"{reader.name} reads a value of unknown rank")
    rank = len(x.shape)
    widths = _numbers(graph, f"pad_{rank}_{missing}", [0] * (2 * rank - 1) + [missing])
    node = ir.node("Pad", [x, widths], {"mode": "constant"}, name=f"{reader.name}/Pad")
    node.outputs[0].name, node.outputs[0].type = f"{node.name}_output", x.type
    graph.insert_before(reader, node)
    reader.replace_input_with(0, node.outputs[0])


def _cut_rows(graph: ir.Graph, reader: ir.Node, size: int) -> None:
    result = reader.outputs[0]
    bounds = [_numbers(graph, f"slice_{name}", [value]) for name, value in (("0", 0), (str(size), size), ("last", -1))]
    node = ir.node("Slice", [result, *bounds], name=f"{reader.name}/Slice")
    cut = node.outputs[0]
    name, cut.shape, cut.type = str(result.name), result.shape, result.type
    result.name, result.shape = f"{name}_padded", None
    cut.name = name
    result.replace_all_uses_with(cut, replace_graph_outputs=True)
    node.replace_input_with(0, result)
    graph.insert_after(reader, node)


def _numbers(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    return add_initializer(graph, name, ir.DataType.INT64, (len(values),), lambda: np.array(values, np.int64))
