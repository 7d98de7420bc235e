"""The vision encoder's windowed attention as packed attention: no padding, no gathers in the blocks.

Patches are put into window order once, before the first block, and back once, behind the merger's norm: everything
between acts on each patch alone, or on a whole grid, which does not mind the order. A window is then a run of tokens,
and PackedMultiHeadAttention (flash attention over runs of any length) attends inside each.

    patches, patch_positions  --order-->  blocks  --rank-->  merger

That operator has no bfloat16 kernel; its float16 one has more digits, and queries, keys and values are far inside its
range. It reads runs from `cumulative_sequence_length`; of `token_offset` only the shape (runs, longest run), on compute
capability 8.0 and up, where flash attention runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .block_weights import MICROSOFT
from .cuda_nodes import Nodes, constant

MERGER_NORM = "model.visual.merger.ln_q.weight"


@dataclass(frozen=True)
class Windows:
    """Values that all windowed blocks share: where runs end int32 [G * W + 1], and int32 [G * W, S] for its shape."""

    ends: ir.Value
    offsets: ir.Value


def pack_windows(model: ir.Model) -> None:
    """Rewrite the windowed attention of a vision graph in place; a graph without any is left alone."""
    graph = model.graph
    windowed = [node for node in graph if node.op_type == "Attention" and is_windowed(node)]
    if not windowed:
        return
    start = graph[0]
    builder = Nodes()
    inputs = {str(value.name): value for value in graph.inputs}
    rank, order = orders(builder, inputs["windows"], inputs["window_slots"])
    windows = window_runs(builder, inputs["patches"], inputs["windows"])
    for name, axis in (("patches", 1), ("patch_positions", 0)):
        reorder_input(builder, inputs[name], order, axis)
    graph.insert_before(start, list(builder.nodes))
    for attention in windowed:
        _pack(graph, attention, windows)
    restore_order(graph, rank)


def is_windowed(node: ir.Node) -> bool:
    """Only windowed blocks have a mask, and gather their queries."""
    return len(node.inputs) > 3 and node.inputs[3] is not None and _through(node.inputs[0], "Gather")


def orders(op: Nodes, windows: ir.Value, slots: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Each patch's place in window order, and the patch at each place, int64 [N] both."""
    filled = op.Cast(op.GreaterOrEqual(windows, constant(op, 0)), to=ir.DataType.INT64)
    counted = op.CumSum(op.Reshape(filled, constant(op, [-1])), constant(op, 0))
    rank = op.Sub(op.Gather(counted, slots, axis=0), constant(op, 1))
    patches = op.Range(constant(op, 0), op.Squeeze(op.Shape(slots)), constant(op, 1))
    return rank, op.ScatterElements(slots, rank, patches, axis=0)


def window_runs(op: Nodes, patches: ir.Value, windows: ir.Value) -> Windows:
    """Where the runs of all grids' windows end."""
    filled = op.Cast(op.GreaterOrEqual(windows, constant(op, 0)), to=ir.DataType.INT32)
    lengths = op.ReduceSum(filled, constant(op, [1]), keepdims=0)
    grids = op.Shape(patches, start=0, end=1)
    every = op.Expand(lengths, op.Concat(grids, op.Shape(lengths), axis=0))
    ends = op.CumSum(op.Reshape(every, constant(op, [-1])), constant(op, 0))
    zero = op.Constant(value=ir.tensor([0], dtype=ir.DataType.INT32))
    runs = op.Mul(grids, op.Shape(windows, start=0, end=1))
    offsets = op.Expand(zero, op.Concat(runs, op.Shape(windows, start=1, end=2), axis=0))
    return Windows(op.Concat(zero, ends, axis=0), offsets)


def reorder_input(op: Nodes, value: ir.Value, order: ir.Value, axis: int) -> ir.Value:
    """Give all that read an input, but for its shape, its patches in window order."""
    users = [(node, index) for node, index in value.uses() if node.op_type != "Shape"]
    ordered = op.Gather(value, order, axis=axis)
    ordered.type, ordered.shape = value.type, value.shape
    for node, index in users:
        node.replace_input_with(index, ordered)
    return ordered


def _pack(graph: ir.Graph, attention: ir.Node, windows: Windows) -> None:
    """Replace one windowed attention, from behind its Split to before its output projection."""
    turned, key, value = (back_to(v, "RotaryEmbedding", "Split") for v in attention.inputs[:3])
    query_node, key_node = turned.producer(), key.producer()
    if query_node is None or key_node is None:
        raise ValueError(f"{attention.name}: queries and keys are not rotated")
    sources = [back_to(node.inputs[0], "Split") for node in (query_node, key_node)]
    result = forward_to_projection(attention.outputs[0])
    heads = _axis(attention.inputs[0], 1)
    builder = Nodes()
    cos, sin = (builder.Gather(angles, constant(builder, 0), axis=0) for angles in query_node.inputs[1:3])
    offset = constant(builder, [0])
    rotated = [builder.RotaryEmbedding(x, offset, cos, sin, _domain=MICROSOFT) for x in sources]
    out = _attend(builder, [*rotated, value], windows, heads)
    joined = builder.Reshape(out, builder.Shape(sources[0]))
    if sources[0].dtype == ir.DataType.BFLOAT16:
        joined = builder.Cast(joined, to=ir.DataType.BFLOAT16)
    joined.type, joined.shape = result.type, result.shape
    graph.insert_after(attention, list(builder.nodes))
    result.replace_all_uses_with(joined)


def _attend(op: Nodes, parts: list[ir.Value], windows: Windows, heads: int) -> ir.Value:
    """PackedMultiHeadAttention of query, key and value [G, N, H * d], without bfloat16: [G * N, H * d]."""
    value = parts[-1]
    if value.dtype == ir.DataType.BFLOAT16:
        parts = [op.Cast(part, to=ir.DataType.FLOAT16) for part in parts]
    rows = constant(op, [-1, _axis(value, -1)])
    packed = [op.Reshape(part, rows) for part in parts]
    inputs = [*packed, None, windows.offsets, windows.ends]
    return op.PackedMultiHeadAttention(*inputs, num_heads=heads, _domain=MICROSOFT)


def restore_order(graph: ir.Graph, rank: ir.Value) -> None:
    """Put the patches back behind the merger's norm, before they are merged."""
    (norm,) = (node for node, _ in graph.initializers[MERGER_NORM].uses())
    normed = norm.outputs[0]
    users = list(normed.uses())
    builder = Nodes()
    restored = builder.Gather(normed, rank, axis=1)
    restored.type, restored.shape = normed.type, normed.shape
    graph.insert_after(norm, list(builder.nodes))
    for node, index in users:
        node.replace_input_with(index, restored)


def back_to(value: ir.Value | None, *operators: str) -> ir.Value:
    """The value that one of the operators gave, back along first inputs."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in operators:
            return value
        value = node.inputs[0]
    raise ValueError(f"no {' or '.join(operators)} before this attention")


def _through(value: ir.Value | None, operator: str) -> bool:
    """Whether a value passed an operator since its rotation."""
    while value is not None and (node := value.producer()) is not None and node.op_type != "RotaryEmbedding":
        if node.op_type == operator:
            return True
        value = node.inputs[0]
    return False


def forward_to_projection(value: ir.Value) -> ir.Value:
    """The value that the output projection reads."""
    while True:
        (node,) = {node for node, _ in value.uses()}
        if node.op_type in ("MatMul", "QuantizeLinear"):
            return value
        value = node.outputs[0]


def _axis(value: ir.Value | None, axis: int) -> int:
    if value is None or value.shape is None:
        raise ValueError("a value of the vision graph has no shape")
    return int(value.shape[axis])  # type: ignore[arg-type]
