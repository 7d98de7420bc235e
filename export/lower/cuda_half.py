"""Queries, keys and values of packed attention multiplied in float16 where the graph computes in bfloat16.

PackedMultiHeadAttention has no bfloat16 kernel. Its three inputs would be cast on the way in; instead the one value
that their products read is: it comes from a norm, and what it gives goes through float16 anyway.

    norm -> MatMul x 3 (-> rotation) -> Cast x 3  ->  norm -> Cast -> MatMul x 3 (-> rotation), weights in float16
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import add_initializer, data
from .block_weights import MICROSOFT
from .cuda_nodes import Nodes

HALF = ir.DataType.FLOAT16


def multiply_in_half(model: ir.Model) -> None:
    """Rewrite a vision graph in place; one that has no such casts is left alone."""
    halved: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node.op_type == "PackedMultiHeadAttention":
            for value in node.inputs[:3]:
                cast = _producer(_producer(value, "Reshape"), "Cast")
                if cast is not None:
                    _halve(model.graph, cast, halved)


def _halve(graph: ir.Graph, cast: ir.Node, halved: dict[ir.Value, ir.Value]) -> None:
    rotation = _producer(cast, "RotaryEmbedding")
    product = _producer(rotation or cast, "MatMul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None:
        return
    x, weight = product.inputs[0], product.inputs[1]
    if not weight.is_initializer():
        return
    out = _call(graph, product, "MatMul", [_half(graph, product, x, halved), _half_weight(graph, weight)])
    for reader in [node for node in product.outputs[0].consumers() if node.op_type == "Shape"]:
        reader.replace_input_with(0, out)  # or the product in bfloat16 would be computed for its shape
    if rotation is not None:
        angles = [_half(graph, rotation, value, halved) for value in rotation.inputs[2:4]]
        out = _call(graph, rotation, "RotaryEmbedding", [out, rotation.inputs[1], *angles], MICROSOFT)
    cast.outputs[0].replace_all_uses_with(out)


def _half(graph: ir.Graph, before: ir.Node, value: ir.Value | None, halved: dict[ir.Value, ir.Value]) -> ir.Value:
    """A value in float16, cast once for all that read it."""
    if value is None:
        raise ValueError(f"{before.name} lacks an input")
    if value not in halved:
        op = Nodes()
        halved[value] = op.Cast(value, to=HALF)
        halved[value].shape = value.shape
        graph.insert_before(before, list(op.nodes))
    return halved[value]


def _half_weight(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    shape = weight.shape.numpy() if weight.shape else ()
    return add_initializer(graph, f"{weight.name}.half", HALF, shape, lambda: data(weight).astype(np.float16))


def _call(
    graph: ir.Graph, like: ir.Node, operator: str, inputs: list[ir.Value | None], domain: str = ""
) -> ir.Value:  # fmt: skip
    """A node in the place of another, which it stands for."""
    op = Nodes()
    out: ir.Value = getattr(op, operator)(*inputs, _domain=domain)
    out.type, out.shape = ir.TensorType(HALF), like.outputs[0].shape
    graph.insert_before(like, list(op.nodes))
    return out


def _producer(reader: ir.Value | ir.Node | None, operator: str) -> ir.Node | None:
    """The node of this kind that a value, or a node's first input, comes from."""
    value = reader.inputs[0] if isinstance(reader, ir.Node) else reader
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None
