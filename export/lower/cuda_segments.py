"""The vision encoder in segments between its attentions, for CUDA, where kernels of our own attend.

    start            patches -> residual, q k v of block 0
    block (i, i+1)   what block i attended to, residual -> residual, q k v of block i + 1
    end              what the last block attended to, residual -> embeddings

`runtime/contract.py` has the ports. ONNX Runtime's session of a block serves all of them: weights are its inputs. A
row is a patch of a grid, in window order (`cuda_vision.py`); nothing but the end knows which rows are a grid.
Queries and keys are rotated inside attention, in float32, so nothing here is cast to float16.
"""

# mypy: disable-error-code="no-untyped-call"
# The rewriter's rules have no types.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.rewriter import RewriteRuleSet

from ...runtime.contract import FLOAT, VISION_BLOCK, VISION_END, VISION_START, Port, Signature, vision_segments
from . import cpu
from .block_weights import MICROSOFT
from .cuda import Silu, SkipBiasNorm
from .cuda_align import align_inner_width
from .cuda_bias import fold_biases
from .cuda_block_inputs import generic_names, lift, read_weights
from .cuda_nodes import Nodes, constant
from .cuda_scratch import note_row_bytes
from .cuda_vision import (
    MERGER_NORM,
    back_to,
    forward_to_projection,
    is_windowed,
    orders,
    reorder_input,
    restore_order,
    window_runs,
)

SKIP_NORM = "SkipSimplifiedLayerNormalization"
HEAD_MULTIPLE, MAX_HEAD_DIM = 16, 112
"""Heads that the attention kernel takes (`runtime/kernels/`)."""
TYPES = {"int32": ir.DataType.INT32, "int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT}
ACTIVATIONS = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Segments:
    """A vision encoder in three files' graphs, and the weights that are inputs of the second."""

    start: ir.Model
    block: ir.Model
    end: ir.Model
    heads: int
    head_dim: int
    inputs: tuple[str, ...]
    """Weights of the block's file, as it names them."""
    blocks: tuple[tuple[str, ...], ...]
    """For each run of it, what is bound to them: names in `weights`."""
    full_attention_blocks: tuple[int, ...]
    weights: Mapping[str, ir.TensorProtocol]


@dataclass(frozen=True)
class Cut:
    """A vision graph without attentions: their results are its inputs, what they read is among its outputs."""

    graph: ir.Graph
    attended: tuple[ir.Value, ...]
    qkv: tuple[ir.Value, ...]
    layout: tuple[ir.Value, ...]
    """cos, sin, window_ends and window_ranks."""

    def residual(self, block: int) -> ir.Value:
        """The sum that a block's first norm reads."""
        norm = back_to(self.qkv[block], "RMSNormalization", SKIP_NORM).producer()
        if norm is None or norm.inputs[0] is None:
            raise ValueError(f"block {block} has no norm")
        return norm.outputs[3] if norm.op_type == SKIP_NORM else norm.inputs[0]


def cut_at_attention(model: ir.Model) -> Segments | None:
    """A portable vision graph, which is used up, in segments; None where the attention kernel cannot run it.

    Raises ValueError for quantized weights, which this target has none of in vision (`quantize/plain.py`).
    """
    if any(node.op_type == "DequantizeLinear" for node in model.graph):
        raise ValueError("the vision encoder is quantized, which the CUDA target does not run")
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    query = attentions[0].inputs[0]
    if query is None or query.shape is None or query.dtype not in ACTIVATIONS or len(attentions) < 2:
        return None
    head_dim = int(query.shape[3])  # type: ignore[arg-type]
    return segments(model) if head_dim % HEAD_MULTIPLE == 0 and head_dim <= MAX_HEAD_DIM else None


def segments(model: ir.Model) -> Segments:
    """A portable vision graph of two or more blocks, which is used up, in segments; any heads, any float."""
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    heads, head_dim = (int(size) for size in attentions[0].inputs[0].shape[1::2])  # type: ignore[index,union-attr,arg-type]
    full = tuple(index for index, node in enumerate(attentions) if not is_windowed(node))
    start, block, end = vision_segments(_signature(model), heads, head_dim).values()
    cut = _cut(model, attentions)
    between = [_block(model, cut, index, block) for index in range(len(attentions) - 1)]
    weights = [read_weights(part.graph) for part in between]
    inputs = generic_names(weights)
    lift(between[0].graph, weights[0], inputs)
    note_row_bytes(between[0])
    return Segments(
        _start(model, cut, start),
        between[0],
        _end(model, cut, end),
        heads,
        head_dim,
        inputs,
        tuple(tuple(found) for found in weights),
        full,
        {name: tensor for found in weights for name, tensor in found.items()},
    )


def _signature(model: ir.Model) -> Signature:
    """Its inputs and outputs; their types are those that they have."""

    def ports(values: Sequence[ir.Value]) -> tuple[Port, ...]:
        axes = ((axis if isinstance(axis, int) else str(axis) for axis in value.shape or ()) for value in values)
        return tuple(Port(str(value.name), tuple(found), FLOAT) for value, found in zip(values, axes, strict=True))

    return Signature(ports(model.graph.inputs), ports(model.graph.outputs))


def _cut(model: ir.Model, attentions: Sequence[ir.Node]) -> Cut:
    """Fuse what is between the attentions, by rows."""
    graph = model.graph
    model.opset_imports[MICROSOFT] = 1
    rows, layout = _layout(graph, attentions[0])
    qkv = tuple(_packed(node) for node in attentions)
    attended = tuple(_replace_attention(graph, node, index) for index, node in enumerate(attentions))
    graph.outputs.extend([*qkv, *layout])
    passes.RemoveUnusedNodesPass()(model)
    _by_rows(graph, [rows, *attended])
    RewriteRuleSet([Silu.rule(), SkipBiasNorm.rule(), cpu.SkipNorm.rule()]).apply_to_model(model)
    align_inner_width(model)
    return Cut(graph, attended, qkv, layout)


def _layout(graph: ir.Graph, attention: ir.Node) -> tuple[ir.Value, tuple[ir.Value, ...]]:
    """Put patches into window order; returns the rows that they are, and `Cut.layout`."""
    inputs = {str(value.name): value for value in graph.inputs}
    first, op = graph[0], Nodes()
    ranks, order = orders(op, inputs["windows"], inputs["window_slots"])
    ends = window_runs(op, inputs["patches"], inputs["windows"]).ends
    patches = reorder_input(op, inputs["patches"], order, 1)
    reorder_input(op, inputs["patch_positions"], order, 0)
    users = list(patches.uses())
    rows = op.Reshape(patches, constant(op, [-1, int(patches.shape[-1])]))  # type: ignore[index,arg-type]
    rows.type, rows.shape = patches.type, patches.shape
    for node, index in users:
        node.replace_input_with(index, rows)
    graph.insert_before(first, list(op.nodes))
    turned = back_to(attention.inputs[0], "RotaryEmbedding").producer()
    angles = [_one_grid(graph, attention, value) for value in turned.inputs[1:3]]  # type: ignore[union-attr]
    restore_order(graph, ranks)
    return rows, (*angles, ends, ranks)


def _one_grid(graph: ir.Graph, before: ir.Node, angles: ir.Value | None) -> ir.Value:
    """[G, N, head_dim / 2], the same for each grid, cast or not -> [N, head_dim / 2] in float32."""
    if angles is None:
        raise ValueError(f"{before.name} has no angles")
    node = angles.producer()
    if node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        angles = node.inputs[0]
    op = Nodes()
    one = op.Gather(angles, constant(op, 0), axis=0)
    one.type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, list(op.nodes))
    return one


def _packed(attention: ir.Node) -> ir.Value:
    """What one attention's queries, keys and values are split from."""
    split = back_to(attention.inputs[2], "Split").producer()
    if split is None or split.inputs[0] is None:
        raise ValueError(f"{attention.name} has no packed queries, keys and values")
    return split.inputs[0]


def _replace_attention(graph: ir.Graph, attention: ir.Node, index: int) -> ir.Value:
    """Make what the output projection reads an input."""
    result = forward_to_projection(attention.outputs[0])
    attended = ir.Value(name=f"attended.{index}", type=result.type, shape=result.shape)
    graph.inputs.append(attended)
    result.replace_all_uses_with(attended)
    return attended


def _by_rows(graph: ir.Graph, first: Sequence[ir.Value]) -> None:
    """Say [rows, width] of `first` and all that follows up to the merger's norm; grids come apart behind it."""
    (norm,) = (node for node, _ in graph.initializers[MERGER_NORM].uses())
    inputs = {str(value.name): value for value in graph.inputs}
    (restored,) = norm.outputs[0].consumers()
    op = Nodes()
    sizes = op.Concat(
        constant(op, [-1]), op.Shape(inputs["window_slots"]), constant(op, [_width(norm.outputs[0])]), axis=0
    )
    grids = op.Reshape(norm.outputs[0], sizes)
    grids.type, grids.shape = norm.outputs[0].type, norm.outputs[0].shape
    graph.insert_before(restored, list(op.nodes))
    restored.replace_input_with(0, grids)
    rows = set(first)
    for node in graph:
        if rows.intersection(node.inputs):
            rows.update(node.outputs)
        if node is norm:
            break
    for value in rows:
        value.shape = ir.Shape(["rows", _width(value)])


def _start(model: ir.Model, cut: Cut, ports: Signature) -> ir.Model:
    inputs = cut.graph.inputs[: len(ports.inputs)]
    graph = ir.convenience.extract(cut.graph, inputs, [cut.residual(0), cut.qkv[0], *cut.layout])
    return _finished(graph, VISION_START, model, ports)


def _block(model: ir.Model, cut: Cut, index: int, ports: Signature) -> ir.Model:
    inputs = [cut.attended[index], cut.residual(index)]
    graph = ir.convenience.extract(cut.graph, inputs, [cut.residual(index + 1), cut.qkv[index + 1]])
    return _finished(graph, VISION_BLOCK, model, ports)


def _end(model: ir.Model, cut: Cut, ports: Signature) -> ir.Model:
    ranks, last = cut.layout[-1], len(cut.attended) - 1
    sized = [value for value in cut.graph.inputs if value.name in ("patches", "window_slots")]
    inputs = [cut.attended[last], cut.residual(last), ranks, *sized]
    graph = ir.convenience.extract(cut.graph, inputs, [cut.graph.outputs[0]])
    attended, _, ranks, *sized = graph.inputs
    for value in sized:
        op = Nodes()
        count = op.Shape(ranks, start=0, end=1)
        if value.name == "patches":
            count = op.Div(op.Shape(attended, start=0, end=1), count)
        graph.insert_before(graph[0], list(op.nodes))
        for node, _ in list(value.uses()):
            node.outputs[0].replace_all_uses_with(count)  # a Shape: grids, or patches of one
            graph.remove(node, safe=True)
        graph.inputs.remove(value)
    return _finished(graph, VISION_END, model, ports)


def _finished(graph: ir.Graph, name: str, source: ir.Model, ports: Signature) -> ir.Model:
    """A segment of its own, its ports as the contract names them."""
    model = ir.Model(graph, ir_version=source.ir_version)
    graph.name = name
    fold_biases(model)
    for tidy in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        tidy(model)
    found = [*graph.inputs, *graph.outputs]
    wanted = [*ports.inputs, *ports.outputs]
    names = {port.name for port in wanted}
    for node in graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inside"
    for value, port in zip(found, wanted, strict=True):
        value.name, value.shape = port.name, ir.Shape(port.axes)
        if port.dtype in TYPES:
            value.type = ir.TensorType(TYPES[port.dtype])
    note_row_bytes(model)
    return model


def _width(value: ir.Value) -> int:
    if value.shape is None:
        raise ValueError(f"{value.name} has no shape")
    return int(value.shape[-1])  # type: ignore[arg-type]
