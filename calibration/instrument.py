"""Make a graph tell what goes into its Linears: channel maxima and chosen rows, computed inside the graph.

    x -> Reshape [rows, channels] -> Abs -> ReduceMax   -> output `max of LINEAR`   [channels]
                                  -> Gather(chosen rows) -> output `rows of LINEAR` [chosen, channels]

Reducing inside keeps activations where they are: a clip of 1,000 tokens would hand out hundreds of MB otherwise.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..export.quantize.linears import Linear, find_linears
from ..export.trace import OPSET

CHOSEN = "chosen_rows"
"""Extra input, int64 [chosen]; a tensor with fewer rows (the merger's) wraps around."""


def max_port(name: str) -> str:
    """Output with the largest magnitude of every channel."""
    return f"max of {name}"


def rows_port(name: str) -> str:
    """Output with the chosen rows."""
    return f"rows of {name}"


def instrument(source: Path, target: Path) -> dict[str, list[str]]:
    """Write `source` with these outputs to `target` beside it; weights stay in their file.

    Returns the weights that read each observed tensor, by the tensor's name: that of the first of them. A graph without
    Linears is not written.
    """
    model = ir.load(source)
    model.opset_imports.setdefault("", OPSET)
    readers: dict[str, list[Linear]] = {}
    for linear in find_linears(model).values():
        readers.setdefault(str(linear.x.name), []).append(linear)
    if not readers:
        return {}
    chosen = ir.Value(name=CHOSEN, shape=ir.Shape(["chosen"]), type=ir.TensorType(ir.DataType.INT64))
    model.graph.inputs.append(chosen)
    found = {}
    for linears in readers.values():
        name = str(linears[0].weight.name)
        _observe(model.graph, linears[0], chosen)
        found[name] = [str(linear.weight.name) for linear in linears]
    ir.save(model, target)
    return found


def _observe(graph: ir.Graph, linear: Linear, chosen: ir.Value) -> None:
    name, dtype = str(linear.weight.name), linear.weight.dtype or ir.DataType.FLOAT
    channels = (linear.weight.shape or ir.Shape(()))[linear.input_axis]
    flat = _node(graph, "Reshape", [linear.x, _constant(graph, f"flat {name}", [-1, int(str(channels))])], dtype)
    magnitude = _node(graph, "Abs", [flat], dtype)
    largest = _node(graph, "ReduceMax", [magnitude, _constant(graph, "first axis", [0])], dtype, keepdims=0)
    count = _node(graph, "Shape", [flat], ir.DataType.INT64, start=0, end=1)
    picked = _node(graph, "Gather", [flat, _node(graph, "Mod", [chosen, count], ir.DataType.INT64)], dtype, axis=0)
    for value, port, axes in ((largest, max_port(name), [channels]), (picked, rows_port(name), ["chosen", channels])):
        value.name, value.shape = port, ir.Shape(axes)
        graph.outputs.append(value)


def _node(graph: ir.Graph, kind: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
    node = ir.node(kind, inputs, attributes)
    graph.append(node)
    node.outputs[0].type = ir.TensorType(dtype)
    return node.outputs[0]


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(numbers, dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]
