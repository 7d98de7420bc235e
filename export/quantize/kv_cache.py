"""An int8 or fp8 KV cache in standard ONNX: rows are rounded as they are written and scaled back where they are read.

    rows -> Div(scale) [-> Round] -> Clip -> Cast(8 bits) -> TensorScatter(8-bit cache) -> Cast(float) -> Mul(scale)

A scale for every key-value head and channel: keys have channels that are tens of times larger than others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.contract import cache_names, cache_output
from ...runtime.errors import ExportError
from ..recipe import KVCacheRecipe
from .lazy import Array, add_initializer


@dataclass(frozen=True)
class CacheType:
    """Numbers that a cache can hold, up to `limit` in magnitude."""

    dtype: ir.DataType
    limit: float
    whole: bool
    """Whether they are whole numbers; others round in the cast."""


CACHE_TYPES = {
    "int8": CacheType(ir.DataType.INT8, 127.0, whole=True),  # -128 has no opposite: left out
    "fp8": CacheType(ir.DataType.FLOAT8E4M3FN, 448.0, whole=False),
}


def quantize_cache(model: ir.Model, recipe: KVCacheRecipe) -> None:
    """Rewrite a decoder's caches in place, inputs and outputs included. Raises ExportError where shapes disagree."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    names = cache_names(len(recipe.key_scales))
    scales = [scale for pair in zip(recipe.key_scales, recipe.value_scales, strict=True) for scale in pair]
    if set(names) != {name for name in inputs if "_cache." in name}:
        raise ExportError(f"the recipe has cache scales for {len(recipe.key_scales)} layers; calibrate again")
    outputs = {str(value.name): value for value in model.graph.outputs}
    for name, numbers in zip(names, scales, strict=True):
        scale = _scale(model.graph, inputs[name], np.array(numbers, np.float32))
        _quantize(model.graph, inputs[name], outputs[cache_output(name)], scale, CACHE_TYPES[recipe.type])


def _scale(graph: ir.Graph, cache: ir.Value, numbers: Array) -> ir.Value:
    """Scales [1, kv_heads, 1, head_dim], float32 whatever the graph computes in."""
    heads, width = (cache.shape[1], cache.shape[3]) if cache.shape else (0, 0)
    if not (isinstance(heads, int) and isinstance(width, int)) or numbers.size != heads * width:
        raise ExportError(
            f"the recipe has {numbers.size} scales for {cache.name}, not {heads} x {width}; calibrate again"
        )
    shape = (1, heads, 1, width)
    return add_initializer(graph, f"{cache.name}_scale", ir.DataType.FLOAT, shape, lambda: numbers.reshape(shape))


def _quantize(graph: ir.Graph, cache: ir.Value, updated: ir.Value, scale: ir.Value, kind: CacheType) -> None:
    scatter = updated.producer()
    rows = scatter.inputs[1] if scatter else None
    if scatter is None or rows is None:
        raise ValueError(f"nothing writes {updated.name}")
    floating = cache.dtype or ir.DataType.FLOAT
    lowest = _number(graph, "cache_lowest", -kind.limit, floating)
    highest = _number(graph, "cache_highest", kind.limit, floating)
    steps = []
    if floating != ir.DataType.FLOAT:
        steps.append(ir.node("Cast", [scale], {"to": floating}))
        scale = steps[-1].outputs[0]
    steps.append(ir.node("Div", [rows, scale]))
    if kind.whole:
        steps.append(ir.node("Round", steps[-1].outputs))
    steps.append(ir.node("Clip", [steps[-1].outputs[0], lowest, highest]))
    steps.append(ir.node("Cast", steps[-1].outputs, {"to": kind.dtype}))
    graph.insert_before(scatter, steps)
    scatter.replace_input_with(1, steps[-1].outputs[0])
    readers = list(updated.uses())
    back = ir.node("Cast", [updated], {"to": floating})
    scaled = ir.node("Mul", [back.outputs[0], scale])
    scaled.outputs[0].shape, scaled.outputs[0].type = updated.shape, ir.TensorType(floating)
    for reader in readers:
        reader.node.replace_input_with(reader.idx, scaled.outputs[0])
    graph.insert_after(scatter, [back, scaled])
    cache.type = updated.type = ir.TensorType(kind.dtype)


def _number(graph: ir.Graph, name: str, value: float, dtype: ir.DataType) -> ir.Value:
    return add_initializer(graph, name, dtype, (), lambda: np.array(value, dtype.numpy()))
