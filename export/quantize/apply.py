"""Quantize one graph as its recipe says: fold, then static Q/DQ, then weights alone."""

from __future__ import annotations

import onnx_ir as ir

from ...runtime.errors import ExportError
from ..recipe import STATIC, Recipe
from ..tensors import listing
from .fold import apply_folds
from .linears import find_linears
from .qdq import quantize_static


def quantize(model: ir.Model, recipe: Recipe, graph: str) -> None:
    """Rewrite a bound portable graph in place. Raises ExportError where the recipe names what the graph lacks."""
    apply_folds(model, recipe.folds)
    wanted, found = recipe.graph(graph).linears, find_linears(model)
    if strangers := [weight for weight in wanted if weight not in found]:
        raise ExportError(f"the recipe quantizes {listing(strangers)}, which {graph} lacks; calibrate again")
    chosen = {weight: (found[weight], linear) for weight, linear in wanted.items()}
    quantize_static(model, {name: pair for name, pair in chosen.items() if pair[1].scheme in STATIC})
    if alone := [name for name, (_, linear) in chosen.items() if linear.scheme not in STATIC]:
        raise ExportError(f"weights alone cannot be quantized yet: {listing(alone)}")
    _drop_unread(model)


def _drop_unread(model: ir.Model) -> None:
    """Float weights whose quantized form took their place."""
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses()]:
        del initializers[name]
