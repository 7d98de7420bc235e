"""Lowering for TensorRT and TensorRT-RTX: standard ONNX all the same, in the form that their compiler does best.

    Attention of H heads over K < H key-value heads  ->  Attention of K heads, the H / K queries of a group as rows

TensorRT-RTX 1.7 repeats keys and values for every query head before its attention kernel: for Qwen2.5-7B's 28 over 4
heads and a cache of 20,480 rows it writes 294 MB a layer and run, and keeps as much scratch. Grouped, it copies 42 MB.
With a single key-value head it has no fused kernel for the grouped form: that stays as it is.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .tensorrt_blocks import fill_blocks
from .tensorrt_split import split_projections

KEYS, MASK = 1, 3
"""Inputs of `Attention`."""


def lower(model: ir.Model) -> ir.Model:
    """The portable model rewritten in place for TensorRT; it stays in the standard's operators."""
    split_projections(model)
    fill_blocks(model)
    masks: dict[tuple[str, int], ir.Value] = {}
    for node in [node for node in model.graph if node.op_type == "Attention"]:
        _group_queries(model.graph, node, masks)
    for tidy in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        tidy(model)
    return model


def _group_queries(graph: ir.Graph, node: ir.Node, masks: dict[tuple[str, int], ir.Value]) -> None:
    """[1, H, T, d] queries as [1, K, H / K * T, d], the mask's rows once for each query of a group."""
    query, keys = node.inputs[0], node.inputs[KEYS]
    if query is None or keys is None:
        raise ValueError(f"{node.name} lacks queries or keys")
    heads, kv_heads, head_dim = _size(query, 1), _size(keys, 1), _size(query, 3)
    if kv_heads in (1, heads):
        return
    mask = node.inputs[MASK] if len(node.inputs) > MASK else None
    grouped = _insert(graph, node, "Reshape", query, _sizes(graph, (1, kv_heads, -1, head_dim)))
    node.replace_input_with(0, grouped)
    if mask is not None:
        key = (str(mask.name), heads // kv_heads)
        if key not in masks:
            masks[key] = _insert(graph, node, "Tile", mask, _sizes(graph, (heads // kv_heads, 1)))
        node.replace_input_with(MASK, masks[key])
    _ungroup(graph, node, (1, heads, -1, head_dim))


def _ungroup(graph: ir.Graph, node: ir.Node, shape: tuple[int, ...]) -> None:
    """The heads of the result where the model expects them."""
    result = node.outputs[0]
    back = ir.node("Reshape", [result, _sizes(graph, shape)], name=f"{node.name}/ungrouped")
    back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = f"{back.name}_output", result.type, result.shape
    result.replace_all_uses_with(back.outputs[0])
    back.replace_input_with(0, result)
    result.shape = None
    graph.insert_after(node, back)


def _insert(graph: ir.Graph, before: ir.Node, op_type: str, x: ir.Value, sizes: ir.Value) -> ir.Value:
    """A node of `x` and constant sizes, placed before another; its output."""
    node = ir.node(op_type, [x, sizes], name=f"{before.name}/{op_type}")
    node.outputs[0].name, node.outputs[0].type = f"{node.name}_output", x.type
    graph.insert_before(before, node)
    return node.outputs[0]


def _sizes(graph: ir.Graph, sizes: tuple[int, ...]) -> ir.Value:
    """int64 sizes as an initializer, shared by all who need the same."""
    name = "sizes_" + "_".join(map(str, sizes)).replace("-", "minus")
    if name not in graph.initializers:
        tensor = ir.tensor(list(sizes), dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(
            ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(sizes)]))
        )
    return graph.initializers[name]


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape else None
    if not isinstance(size, int):
        raise ValueError(f"axis {axis} of {value.name} has no fixed size")
    return size
