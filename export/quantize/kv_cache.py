"""An int8 KV cache in standard ONNX: rows are rounded as they are written and scaled back where attention reads them.

    rows -> Div(scale) -> Round -> Clip -> Cast(int8) -> TensorScatter(int8 cache) -> Cast(float) -> Mul(scale)

A scale for every key-value head and channel: keys have channels that are tens of times larger than others.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...runtime.contract import CACHE_DTYPES, cache_names, cache_output
from ...runtime.errors import ExportError
from ..recipe import KVCacheRecipe
from .lazy import Array, add_initializer

LIMIT = 127.0


def quantize_cache(model: ir.Model, recipe: KVCacheRecipe) -> None:
    """Rewrite a decoder's caches in place, inputs and outputs included. Raises ExportError where shapes disagree."""
    if recipe.type not in CACHE_DTYPES:
        raise ExportError(f"a KV cache in {recipe.type} is not built yet; calibrate with --kv-cache int8")
    inputs = {str(value.name): value for value in model.graph.inputs}
    names = cache_names(len(recipe.key_scales))
    scales = [scale for pair in zip(recipe.key_scales, recipe.value_scales, strict=True) for scale in pair]
    if set(names) != {name for name in inputs if "_cache." in name}:
        raise ExportError(f"the recipe has cache scales for {len(recipe.key_scales)} layers; calibrate again")
    outputs = {str(value.name): value for value in model.graph.outputs}
    for name, numbers in zip(names, scales, strict=True):
        scale = _scale(model.graph, inputs[name], np.array(numbers, np.float32))
        _quantize(model.graph, inputs[name], outputs[cache_output(name)], scale)


def _scale(graph: ir.Graph, cache: ir.Value, numbers: Array) -> ir.Value:
    """Scales [1, kv_heads, 1, head_dim]."""
    heads, width = (cache.shape[1], cache.shape[3]) if cache.shape else (0, 0)
    if not (isinstance(heads, int) and isinstance(width, int)) or numbers.size != heads * width:
        raise ExportError(
            f"the recipe has {numbers.size} scales for {cache.name}, not {heads} x {width}; calibrate again"
        )
    dtype, shape = cache.dtype or ir.DataType.FLOAT, (1, heads, 1, width)
    return add_initializer(
        graph, f"{cache.name}_scale", dtype, shape, lambda: numbers.reshape(shape).astype(dtype.numpy())
    )


def _quantize(graph: ir.Graph, cache: ir.Value, updated: ir.Value, scale: ir.Value) -> None:
    scatter = updated.producer()
    rows = scatter.inputs[1] if scatter else None
    if scatter is None or rows is None:
        raise ValueError(f"nothing writes {updated.name}")
    floating = cache.dtype or ir.DataType.FLOAT
    ends = [_number(graph, "cache_lowest", -LIMIT, floating), _number(graph, "cache_highest", LIMIT, floating)]
    steps = [ir.node("Div", [rows, scale])]
    steps.append(ir.node("Round", steps[-1].outputs))
    steps.append(ir.node("Clip", [steps[-1].outputs[0], *ends]))
    steps.append(ir.node("Cast", steps[-1].outputs, {"to": ir.DataType.INT8}))
    graph.insert_before(scatter, steps)
    scatter.replace_input_with(1, steps[-1].outputs[0])
    readers = list(updated.uses())
    back = ir.node("Cast", [updated], {"to": floating})
    scaled = ir.node("Mul", [back.outputs[0], scale])
    scaled.outputs[0].shape, scaled.outputs[0].type = updated.shape, ir.TensorType(floating)
    for reader in readers:
        reader.node.replace_input_with(reader.idx, scaled.outputs[0])
    graph.insert_after(scatter, [back, scaled])
    cache.type = updated.type = ir.TensorType(ir.DataType.INT8)


def _number(graph: ir.Graph, name: str, value: float, dtype: ir.DataType) -> ir.Value:
    return add_initializer(graph, name, dtype, (), lambda: np.array(value, dtype.numpy()))
