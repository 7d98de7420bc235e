"""Where a portable graph reads a matrix of weights: the places that can be quantized."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Linear:
    """A MatMul by a weight [in, out], or the head's Gemm by one [out, in]."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    input_axis: int
    """The weight's axis that is summed over."""

    @property
    def name(self) -> str:
        """The checkpoint's name of the layer, e.g. `model.language_model.layers.0.mlp.up_proj`."""
        return str(self.weight.name).removesuffix(".weight")

    def read(self, x: ir.Value, weight: ir.Value) -> None:
        """Make the node read these instead."""
        self.node.replace_input_with(0, x)
        self.node.replace_input_with(1, weight)


def find_linears(model: ir.Model) -> dict[str, Linear]:
    """Every Linear of a traced graph by the name of its weight, in the order that they run."""
    found = {}
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        x, weight = node.inputs[0], node.inputs[1]
        if x is None or weight is None or not weight.is_initializer() or not str(weight.name).endswith(".weight"):
            continue
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
        found[str(weight.name)] = Linear(node, x, weight, 1 if transposed else 0)
    return found


def find_tables(model: ir.Model) -> dict[str, ir.Node]:
    """Every node that looks rows up in a weight [rows, width], by the name of that weight."""
    return {
        str(node.inputs[0].name): node
        for node in model.graph
        if node.op_type == "Gather"
        and node.inputs[0] is not None
        and node.inputs[0].is_initializer()
        and str(node.inputs[0].name).endswith(".weight")
    }
