"""Quantized projections that are split afterwards, for TensorRT: each part its own product.

    MatMul( , DequantizeLinear(W [in, 3 d])) -> Add -> Split  ->  3 x (MatMul( , DequantizeLinear(W_i [in, d])) -> Add)

TensorRT-RTX 1.7 moves the Split before the product, onto the dequantized weight, and multiplies in the wider type.
Apart, the parts stay quantized, and it joins them into one product again as it does with the decoder's projections.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..quantize.lazy import Array, add_initializer, data
from .quantized_linears import QuantizedLinear, find_quantized_linears


def split_projections(model: ir.Model) -> None:
    """Replace every quantized Linear that only a Split into equal parts reads, in place."""
    for linear in list(find_quantized_linears(model)):
        readers = list(linear.result.consumers())
        if len(readers) == 1 and readers[0].op_type == "Split" and not linear.result.is_graph_output():
            _split(model.graph, linear, readers[0])
    passes.RemoveUnusedNodesPass()(model)


def _split(graph: ir.Graph, linear: QuantizedLinear, split: ir.Node) -> None:
    parts = len(split.outputs)
    for index, output in enumerate(list(split.outputs)):
        nodes = _part(graph, linear, index, parts)
        result = nodes[-1].outputs[0]
        result.name, result.type, result.shape = f"{nodes[-1].name}_output", output.type, output.shape
        graph.insert_before(split, nodes)
        output.replace_all_uses_with(result)


def _part(graph: ir.Graph, linear: QuantizedLinear, index: int, parts: int) -> list[ir.Node]:
    """DequantizeLinear, MatMul and Add of the part's columns."""
    source = linear.node.inputs[1].producer() if linear.node.inputs[1] else None
    if source is None:
        raise ValueError(f"{linear.name} has no quantized weight")

    def cut(value: ir.Value) -> ir.Value:
        return _columns(graph, value, linear, index, parts)

    name = f"{linear.name}/{index}"
    attributes = list(source.attributes.values())
    stored = ir.Node("", "DequantizeLinear", [cut(linear.weight), cut(linear.scale)], attributes)
    product = ir.node(linear.node.op_type, [linear.node.inputs[0], stored.outputs[0]])
    nodes = [stored, product]
    if linear.bias_value is not None:
        nodes.append(ir.node("Add", [product.outputs[0], cut(linear.bias_value)]))
    dtype = linear.scale.dtype or ir.DataType.UNDEFINED
    for node in nodes:
        node.name = f"{name}/{node.op_type}"
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_output", ir.TensorType(dtype)
    return nodes


def _columns(graph: ir.Graph, value: ir.Value, linear: QuantizedLinear, index: int, parts: int) -> ir.Value:
    """A part of a weight, its scales or the bias: their output channels are the axis that is not summed over."""
    shape = list(value.shape.numpy()) if value.shape else []
    axis = 1 - linear.input_axis if len(shape) == 2 else 0
    shape[axis] //= parts
    pick = _picker(value, axis, slice(index * shape[axis], (index + 1) * shape[axis]))
    return add_initializer(graph, f"{value.name}.{index}", value.dtype or ir.DataType.UNDEFINED, tuple(shape), pick)


def _picker(value: ir.Value, axis: int, part: slice) -> Callable[[], Array]:
    def pick() -> Array:
        numbers: Array = data(value)[:, part] if axis else data(value)[part]
        return numbers

    return pick
