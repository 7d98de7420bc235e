"""Walk an ONNX graph at given input sizes: every tensor's shape, element size, and (where it is small) its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnx import helper

from .graph import Graph, Step, Tensor
from .shape_rules import RULES, same


@dataclass
class Walk:
    """A graph at given sizes."""

    steps: list[Step] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


def walk(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Walk:
    """Follow the nodes in order from the inputs' shapes."""
    found = Walk(tensors=dict(graph.weights))
    for name, kind in graph.inputs.items():
        found.tensors[name] = Tensor(tuple(shapes[name]), kind)
    for node in graph.nodes:
        _take(found, node)
    return found


def _take(found: Walk, node: Any) -> None:
    inputs = tuple(found.tensors[name] if name else None for name in node.input)
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    step = Step(node.op_type, node.name, inputs, (), attributes, tuple(node.input), tuple(node.output))
    rule = RULES.get(node.op_type)
    if rule is None:
        found.unknown.add(node.op_type)
    outputs = (rule or same)(step, len(node.output))
    for name, tensor in zip(node.output, outputs, strict=False):
        found.tensors[name] = tensor
    found.steps.append(replace(step, outputs=tuple(outputs)))
