"""Biases of the vision encoder's wide products inside the products: the activation gets a column of ones.

    MatMul(x, W) + b  ->  MatMul([x, 1, 0 ...], [W; b; 0 ...])

ONNX Runtime 1.31 has no bfloat16 product with a bias inside: an Add reads and writes what the product gave, three
(query, key, value) and five times (gate, up) as wide as x, and a Split of query, key and value does so again. The
column costs one more pass over x, which all products of x share, and three products of a third cost what one does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import Array, add_initializer, data
from .cuda_nodes import Nodes, constant

BLOCKS = "model.visual.blocks."
COLUMNS = 8
"""Columns that are added, ones and zeros: the width stays one that tensor cores like."""
WORTH = 2
"""Times that what a value's products give must be wider than the value itself."""


@dataclass(frozen=True)
class Part:
    """A slice of a biased product that is read on its own: `width` columns from `start` on."""

    result: ir.Value
    start: int
    width: int


@dataclass(frozen=True)
class BiasedProduct:
    """`Add(MatMul(x, weight), bias)`, weight [in, out]; `parts` cover its columns."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    bias: ir.Value
    parts: tuple[Part, ...]

    @property
    def columns(self) -> int:
        """Outputs."""
        return sum(part.width for part in self.parts)


def fold_biases(model: ir.Model) -> None:
    """Rewrite the biased products of a vision graph's blocks in place; other graphs have none."""
    by_input: defaultdict[ir.Value, list[BiasedProduct]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == "MatMul" and (product := _biased(node)) is not None:
            by_input[product.x].append(product)
    worth = {
        x: products
        for x, products in by_input.items()
        if sum(product.columns for product in products) >= WORTH * _width(x)
    }
    if not worth:
        return
    first = next(iter(worth.values()))[0]
    column = _column(model.graph, first)
    for x, products in worth.items():
        _fold(model.graph, x, column, products)


def _biased(node: ir.Node) -> BiasedProduct | None:
    x, weight = node.inputs
    readers = list(node.outputs[0].consumers())
    if x is None or weight is None or not str(weight.name).startswith(BLOCKS) or not weight.is_initializer():
        return None
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    bias = next((value for value in readers[0].inputs if value is not None and value.is_initializer()), None)
    if bias is None or bias.shape is None or len(bias.shape) != 1:
        return None
    return BiasedProduct(node, x, weight, bias, _parts(readers[0].outputs[0], _width(weight)))


def _parts(total: ir.Value, width: int) -> tuple[Part, ...]:
    """The whole, or what an even Split of its columns gives."""
    readers = list(total.consumers())
    if len(readers) == 1 and readers[0].op_type == "Split" and len(readers[0].inputs) == 1:
        results = readers[0].outputs
        return tuple(Part(value, i * width // len(results), width // len(results)) for i, value in enumerate(results))
    return (Part(total, 0, width),)


def _column(graph: ir.Graph, product: BiasedProduct) -> ir.Value:
    """1, 0, 0 ... for every row of the first product: [..., COLUMNS]."""
    op, dtype = Nodes(), _dtype(product.weight)
    first = np.zeros(COLUMNS, np.float32)
    first[0] = 1
    row = op.Cast(op.Constant(value=ir.tensor(first)), to=dtype)
    sizes = op.Concat(op.Shape(product.x, start=0, end=-1), constant(op, [COLUMNS]), axis=0)
    ones = op.Expand(row, sizes)
    ones.type = ir.TensorType(dtype)
    graph.insert_before(product.node, list(op.nodes))
    return ones


def _fold(graph: ir.Graph, x: ir.Value, column: ir.Value, products: list[BiasedProduct]) -> None:
    first = min((product.node for product in products), key=list(graph).index)
    op = Nodes()
    wide = op.Concat(x, column, axis=-1)
    wide.type, wide.shape = column.type, _with_width(x, _width(x) + COLUMNS)
    graph.insert_before(first, list(op.nodes))
    for product in products:
        for part in product.parts:
            op = Nodes()
            out = op.MatMul(wide, _affine(graph, product, part))
            out.type, out.shape = part.result.type, part.result.shape
            graph.insert_before(product.node, list(op.nodes))
            part.result.replace_all_uses_with(out, replace_graph_outputs=True)


def _affine(graph: ir.Graph, product: BiasedProduct, part: Part) -> ir.Value:
    """[in + COLUMNS, width]: the weight's columns, the bias below them, zeros. Read when it is written."""
    weight, bias, end = product.weight, product.bias, part.start + part.width

    def stacked() -> Array:
        columns, row = data(weight)[:, part.start : end], data(bias)[None, part.start : end]
        return np.concatenate([columns, row, np.zeros((COLUMNS - 1, part.width), columns.dtype)])

    place = f".{part.start // part.width}" if len(product.parts) > 1 else ""
    name = f"{str(weight.name).removesuffix('.weight')}{place}.affine"
    return add_initializer(graph, name, _dtype(weight), (int(weight.shape[0]) + COLUMNS, part.width), stacked)  # type: ignore[arg-type,index]


def _with_width(value: ir.Value, width: int) -> ir.Shape | None:
    return ir.Shape([*value.shape[:-1], width]) if value.shape is not None else None


def _width(value: ir.Value) -> int:
    if value.shape is None:
        raise ValueError(f"{value.name} has no shape")
    return int(value.shape[-1])  # type: ignore[arg-type]


def _dtype(value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    return value.dtype
