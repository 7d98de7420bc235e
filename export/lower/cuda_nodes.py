"""New nodes of a graph, written as calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx_ir.tape import Tape


class Nodes(Tape):
    """New nodes, written as calls: `op.Gather(x, index, axis=1)`."""

    def __getattr__(self, operator: str) -> Callable[..., ir.Value]:
        def add(*inputs: ir.Value | None, _domain: str = "", **attributes: Any) -> ir.Value:
            return self.op(operator, inputs, attributes, domain=_domain)

        return add


def constant(op: Nodes, value: int | list[int]) -> ir.Value:
    """An int64 constant."""
    return op.Constant(value=ir.tensor(value, dtype=ir.DataType.INT64))
