"""Long runs of an fp8 decoder on CUDA: a layer's attention as a graph of its own, MLPs in fp8 outside it.

    x -> [norm, q k v, attention, output product, + x, norm] -> normed, sum      this graph, ONNX Runtime's
    normed -> round -> gate, up -> silu(gate) * up -> round -> down, + sum       `runtime/engines/cuda_long.py`

One graph serves all layers: its weights are inputs, those of the first layer, and the engine binds each one's. An MLP's
activations are divided by the recipe's scales and rounded; its weights have one scale each (`FP8_BY_TENSOR`).
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from ...runtime.contract import ATTENDED, RESIDUAL, cache_names, cache_output
from ...runtime.manifest import StepForm
from ..quantize.lazy import data
from .cuda_scratch import note_row_bytes
from .quantized_linears import QuantizedLinear, find_quantized_linears

LONG_RUN = 1024
"""Tokens from which on a run is faster so: on an H200 18 ms of 33 with 1,024, 144 of 231 with 8,192."""
MULTIPLE = 16
"""Of both widths: cuBLASLt reads 16 bytes at a time."""
MLP = "model.language_model.layers.{}.mlp.{}_proj"
FP8 = ir.DataType.FLOAT8E4M3FN


def mlp_steps(model: ir.Model, layers: int) -> tuple[tuple[float, float], ...] | None:
    """What a portable decoder's recipe divides each MLP's activations by: its inputs, and what `down_proj` reads.

    None where a layer's MLP is not all in fp8 with rounded activations.
    """
    linears = {linear.name: linear for linear in find_quantized_linears(model) if _fits(linear)}
    found = []
    for layer in range(layers):
        gate, up, down = (linears.get(MLP.format(layer, part)) for part in ("gate", "up", "down"))
        if gate is None or up is None or down is None:
            return None
        found.append((max(_step(gate), _step(up)), _step(down)))
    return tuple(found)


def layer_attention(model: ir.Model, steps: StepForm) -> ir.Model:
    """The first layer of a lowered decoder, whose weights are inputs, up to what its MLP reads. `model` is consumed.

    Outputs are the contract's ATTENDED and RESIDUAL, and the layer's updated caches.
    """
    norm = next(node for node in model.graph if _reads(node, steps.layers[0].mlp_norm))
    normed, total = norm.outputs[0], norm.outputs[3]
    normed.name, total.name = ATTENDED, RESIDUAL
    outputs = {str(value.name): value for value in model.graph.outputs}
    caches = [outputs[cache_output(name)] for name in cache_names(1)]
    model.graph.outputs[:] = [normed, *caches, total]
    passes.RemoveUnusedNodesPass()(model)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses()]
    note_row_bytes(model)
    return model


def _fits(linear: QuantizedLinear) -> bool:
    sizes = (linear.inputs, linear.outputs)
    return linear.dtype == FP8 and linear.input_scale is not None and all(size % MULTIPLE == 0 for size in sizes)


def _step(linear: QuantizedLinear) -> float:
    if linear.input_scale is None:
        raise ValueError(f"{linear.name} does not round its activations")
    return float(data(linear.input_scale).item())


def _reads(node: ir.Node, weight: str) -> bool:
    return any(value is not None and value.name == weight for value in node.inputs)
