"""The weights of a vision encoder's blocks as inputs of one file for all of them (`cuda_segments.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .cuda_bias import BLOCKS

NEXT = "next."
"""Before the names of inputs that are weights of the block behind: its norm, its query, key and value matrix."""


def read_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """The initializers in the order in which the graph reads them."""
    return {
        str(value.name): value.const_value
        for node in graph
        for value in node.inputs
        if value is not None and value.is_initializer() and value.const_value is not None
    }


def generic_names(blocks: Sequence[Mapping[str, ir.TensorProtocol]]) -> tuple[str, ...]:
    """The weights' names in a file for all blocks, each block's in order. Raises ValueError where blocks differ."""
    found = set()
    for index, weights in enumerate(blocks):
        own, behind = f"{BLOCKS}{index}.", f"{BLOCKS}{index + 1}."
        names = (name.replace(own, "").replace(behind, NEXT) for name in weights)
        kinds = ((tensor.dtype, tuple(tensor.shape.numpy())) for tensor in weights.values())
        found.add(tuple(zip(names, kinds, strict=True)))
    if len(found) > 1:
        raise ValueError("the vision encoder's blocks differ in their weights")
    return tuple(name for name, _ in found.pop())


def lift(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol], inputs: Sequence[str]) -> None:
    """Make initializers inputs, under other names."""
    for name, given in zip(weights, inputs, strict=True):
        value = graph.initializers.pop(name)
        value.const_value, value.name = None, given
        graph.inputs.append(value)
