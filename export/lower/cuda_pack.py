"""Put the q, k and v projections of each attention side by side: one matrix product instead of three.

A single token reads the weights once either way, but three products mean three launches and two of them are too small
to fill a GPU; for many tokens the same holds for the two narrow ones. Quantized weights lie side by side as they are
stored, their scales as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Projection:
    """`Add(MatMul(x, weight), bias)`: weight [in, out], bias [out]."""

    result: ir.Value
    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    back: ir.Node | None
    """The DequantizeLinear of a quantized weight; `weight` is what it reads."""

    @property
    def width(self) -> int:
        """Features that come out."""
        return int(_shape(self.bias)[0])


def pack_projections(model: ir.Model) -> None:
    """Pack q, k and v of every GroupQueryAttention whose weights are plain initializers; others stay."""
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention":
            found = [_projection(value) for value in node.inputs[:3]]
            parts = [part for part in found if part is not None]
            if len(parts) == 3 and len({part.x for part in parts}) == 1 and _stored_alike(parts):
                _pack(model, parts)


def _projection(value: ir.Value | None) -> Projection | None:
    """The projection that a value comes from, through a rotation."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "RotaryEmbedding" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Add":
        return None
    product, bias = node.inputs
    matmul = product.producer() if product is not None else None
    if matmul is None or matmul.op_type != "MatMul" or bias is None:
        return None
    x, weight = matmul.inputs
    back = weight.producer() if weight is not None else None
    if back is not None and back.op_type == "DequantizeLinear":
        weight = back.inputs[0]
    if x is None or weight is None or not (weight.is_initializer() and bias.is_initializer()):
        return None
    return Projection(node.outputs[0], x, weight, bias, back)


def _stored_alike(parts: Sequence[Projection]) -> bool:
    """All float, or all quantized to one type with scales of one shape."""
    forms = {
        (
            part.weight.dtype,
            part.back and (part.back.attributes.get_int("axis", 1), part.back.attributes.get_int("block_size", 0)),
        )
        for part in parts
    }
    return len(forms) == 1


def _pack(model: ir.Model, parts: Sequence[Projection]) -> None:
    weight = _side_by_side(model, [part.weight for part in parts])
    bias = _side_by_side(model, [part.bias for part in parts])
    x = parts[0].x
    widths = np.array([part.width for part in parts], dtype=np.int64)
    sizes = ir.Value(name=f"{weight.name}.widths", const_value=ir.tensor(widths))
    sizes.shape, sizes.type = ir.Shape(widths.shape), ir.TensorType(ir.DataType.INT64)
    model.graph.initializers[str(sizes.name)] = sizes
    name = str(weight.name).rpartition(".")[0]
    nodes = [ir.node("MatMul", [x, weight], name=f"{name}/MatMul")]
    backs = [part.back for part in parts if part.back is not None]
    if backs:
        nodes.insert(0, _back(model, backs, weight))
        nodes[1].replace_input_with(1, nodes[0].outputs[0])
    product = nodes[-1]
    total = ir.node("Add", [product.outputs[0], bias], name=f"{name}/Add")
    split = ir.node("Split", [total.outputs[0], sizes], {"axis": -1}, num_outputs=len(parts), name=f"{name}/Split")
    first = min((part.result.producer() for part in parts), key=list(model.graph).index)  # type: ignore[arg-type]
    model.graph.insert_before(first, [*nodes, total, split])  # type: ignore[arg-type]
    for part, output in zip(parts, split.outputs, strict=True):
        output.type, output.shape = part.result.type, part.result.shape
        part.result.replace_all_uses_with(output)


def _back(model: ir.Model, backs: Sequence[ir.Node], weight: ir.Value) -> ir.Node:
    """The DequantizeLinear of weights side by side."""
    scales = [back.inputs[1] for back in backs]
    scale = _side_by_side(model, [value for value in scales if value is not None])
    node = ir.node(
        "DequantizeLinear", [weight, scale], backs[0].attributes.copy(), name=f"{weight.name}/DequantizeLinear"
    )
    node.outputs[0].type, node.outputs[0].shape = backs[0].outputs[0].type, weight.shape
    return node


def _side_by_side(model: ir.Model, values: Sequence[ir.Value]) -> ir.Value:
    """One initializer that holds several along their last axis, read and joined only when it is written."""
    sources = [value.const_value for value in values if value.const_value is not None]
    if len(sources) < len(values):
        raise ValueError(f"{values[0].name} has no data to pack; bind the weights first")
    dtype = sources[0].dtype
    rows, columns = _shape(values[0])[:-1], sum(int(_shape(value)[-1]) for value in values)
    name = _joined_name([str(value.name) for value in values])

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([source.numpy() for source in sources], axis=-1), dtype=dtype, name=name)

    shape = ir.Shape([*rows, columns])
    packed = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
    packed.const_value = ir.LazyTensor(load, dtype=dtype, shape=shape, name=name)
    model.graph.initializers[name] = packed
    return packed


def _joined_name(names: Sequence[str]) -> str:
    """`....self_attn.q_proj.weight` and its siblings -> `....self_attn.q_proj+k_proj+v_proj.weight`."""
    prefix, _, kind = names[0].rpartition(".")
    modules = [name.rpartition(".")[0].rpartition(".")[2] for name in names]
    return f"{prefix.rpartition('.')[0]}.{'+'.join(modules)}.{kind}"


def _shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None:
        raise ValueError(f"{value.name} has no shape")
    return tuple(int(size) for size in value.shape.numpy())
