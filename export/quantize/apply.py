"""Quantize one graph as its recipe says: fold, then static Q/DQ, then weights alone, the token table among them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ...runtime import contract
from ...runtime.errors import ExportError
from ..recipe import STATIC, LinearRecipe, Recipe
from ..tensors import listing
from .fold import apply_folds
from .kv_cache import quantize_cache
from .linears import find_linears, find_tables
from .qdq import TYPES, NumberType, quantize_static
from .weight_only import quantize_tables, quantize_weights


def quantize(model: ir.Model, recipe: Recipe, graph: str, types: Mapping[str, NumberType] = TYPES) -> None:
    """Rewrite a bound portable graph in place; `types` are the static schemes' numbers as the target wants them.

    Raises ExportError where the recipe names what the graph lacks.
    """
    apply_folds(model, recipe.folds)
    wanted, linears, tables = recipe.graph(graph).linears, find_linears(model), find_tables(model)
    if strangers := [weight for weight in wanted if weight not in linears and weight not in tables]:
        raise ExportError(f"the recipe quantizes {listing(strangers)}, which {graph} lacks; calibrate again")
    chosen = {weight: (linears[weight], scheme) for weight, scheme in wanted.items() if weight in linears}
    quantize_static(model, {name: pair for name, pair in chosen.items() if _is_static(pair[1])}, types)
    quantize_weights(model, {name: pair for name, pair in chosen.items() if not _is_static(pair[1])})
    quantize_tables(model, {weight: (tables[weight], wanted[weight]) for weight in wanted if weight in tables})
    if recipe.kv_cache and graph == contract.DECODER:
        quantize_cache(model, recipe.kv_cache)
    _drop_unread(model)


def _is_static(linear: LinearRecipe) -> bool:
    return linear.scheme in STATIC


def _drop_unread(model: ir.Model) -> None:
    """Float weights whose quantized form took their place."""
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses()]:
        del initializers[name]
