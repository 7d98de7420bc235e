"""MLPs of long runs with fp8 activations, over the same weights that short runs multiply whole (`cuda_quantized.py`).

    norm -> MatMul gate, up -> QuickGelu(gate) * up -> MatMul down
    norm / s -> Cast fp8 -> GemmFloat8 gate, up / t -> QuickGelu(gate) * up / t -> Cast fp8 -> GemmFloat8 down * t

GemmFloat8 has one scale for an activation and one for a weight. Dividing by an activation's costs no pass: `s` is in
the norm's weight, a power of two, which bfloat16 divides by exactly; `t` is in up's scale. Nothing on CUDA casts
bfloat16 to fp8, so the norm's output passes through float16, and what is inside the MLP is float16 from the start. Only
MLPs: in attention's narrow products the operator's fixed cost (it waits for the device) is what they would save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import onnx_ir as ir

from ..quantize.lazy import Array, add_initializer, data
from .block_weights import MICROSOFT, fp8_rows, take_over
from .cuda_nodes import Nodes, constant
from .quantized_linears import QuantizedLinear, find_quantized_linears

LONG_RUN = 2048
"""Tokens from which on a run is faster so, or as fast: on one H100 from 1,024 on, on another from 2,048."""
MULTIPLE = 16
"""Of both widths: cuBLASLt reads 16 bytes at a time."""
INPUT_STEP = ".input_step"
"""How names of an activation's scales end."""
NORM_WEIGHT = {"SkipSimplifiedLayerNormalization": 2, "RMSNormalization": 1}
"""Norms, and which input their weight is."""
FP8, HALF, BFLOAT16 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@dataclass(frozen=True)
class Mlp:
    """A norm and the three products behind it."""

    norm: ir.Node
    gate: QuantizedLinear
    up: QuantizedLinear
    down: QuantizedLinear


def multiply_in_fp8(model: ir.Model) -> int:
    """Rewrite every such MLP of a decoder with fused norms in place; returns how many there were."""
    mlps = list(_mlps(model))
    for mlp in mlps:
        _rewrite(model.graph, mlp)
    return len(mlps)


def _mlps(model: ir.Model) -> Iterator[Mlp]:
    linears = {linear.node.outputs[0]: linear for linear in find_quantized_linears(model) if _fits(linear)}
    for down in linears.values():
        product = down.x.producer()
        if product is None or product.op_type != "Mul":
            continue
        activated, up = product.inputs[0], linears.get(product.inputs[1])  # type: ignore[arg-type]  # a Mul has both
        silu = activated.producer() if activated is not None else None
        if silu is None or silu.op_type != "QuickGelu" or up is None:
            continue
        gate = linears.get(silu.inputs[0])  # type: ignore[arg-type]  # it has one
        norm = up.x.producer()
        if gate is not None and gate.x is up.x and norm is not None and _feeds_only(norm, (gate, up), linears):
            yield Mlp(norm, gate, up, down)


def _fits(linear: QuantizedLinear) -> bool:
    sizes = (linear.inputs, linear.outputs)
    return linear.dtype == FP8 and linear.input_scale is not None and all(size % MULTIPLE == 0 for size in sizes)


def _feeds_only(
    norm: ir.Node, wanted: tuple[QuantizedLinear, ...], linears: Mapping[ir.Value, QuantizedLinear]
) -> bool:
    """Whether a norm's first output is read, rounded, by these Linears and nothing else."""
    output = norm.outputs[0]
    readers = [linear.name for linear in linears.values() if linear.x is output]
    rounded = all(node.op_type == "QuantizeLinear" for node in output.consumers())
    return norm.op_type in NORM_WEIGHT and rounded and sorted(readers) == sorted(linear.name for linear in wanted)


def _rewrite(graph: ir.Graph, mlp: Mlp) -> None:
    step, inner_step = _power_of_two(_number(mlp.gate), _number(mlp.up)), _number(mlp.down)
    _divide_norm(graph, mlp.norm, step)
    op, hidden, inner = Nodes(), mlp.gate.inputs, mlp.gate.outputs
    rows = _typed(op.Reshape(mlp.gate.x, constant(op, [-1, hidden])), BFLOAT16, hidden)
    rounded = _rounded(op, _typed(op.Cast(rows, to=HALF), HALF, hidden), hidden)
    gate = _product(graph, op, rounded, mlp.gate, (step, 1.0), HALF)
    up = _product(graph, op, rounded, mlp.up, (step, 1 / inner_step), HALF)
    silu = _typed(op.QuickGelu(gate, alpha=1.0, _domain=MICROSOFT), HALF, inner)
    activated = _rounded(op, _typed(op.Mul(silu, up), HALF, inner), inner)
    down = _product(graph, op, activated, mlp.down, (inner_step, 1.0), BFLOAT16)
    result = op.Reshape(down, constant(op, [1, -1, hidden]))
    graph.insert_before(mlp.down.node, list(op.nodes))
    take_over(mlp.down.node.outputs[0], result)


def _product(
    graph: ir.Graph, op: Nodes, x: ir.Value, linear: QuantizedLinear, scales: tuple[float, float], dtype: ir.DataType
) -> ir.Value:
    """`x` [rows, in] in fp8 by the weight [out, in]; `scales` are the activation's and what goes into the weight's."""

    def weight_scale() -> Array:
        numbers = data(linear.scale).astype(np.float32)
        if (numbers != numbers[0]).any():
            raise ValueError(f"{linear.name} has a scale for each channel, GemmFloat8 takes one for all")
        return numbers[:1] * np.float32(scales[1])

    name = f"{linear.name}.weight"
    of_x = add_initializer(
        graph, f"{linear.name}{INPUT_STEP}", ir.DataType.FLOAT, (1,), lambda: np.array(scales[:1], np.float32)
    )
    of_weight = add_initializer(graph, f"{name}_step", ir.DataType.FLOAT, (1,), weight_scale)
    inputs = (x, fp8_rows(graph, linear), None, of_x, of_weight)
    result = op.GemmFloat8(*inputs, transB=1, dtype=int(dtype), _domain=MICROSOFT)
    return _typed(result, dtype, linear.outputs)


def _rounded(op: Nodes, value: ir.Value, width: int) -> ir.Value:
    """Cast to fp8; what is too large becomes the largest number."""
    return _typed(op.Cast(value, to=FP8, saturate=1), FP8, width)


def _typed(value: ir.Value, dtype: ir.DataType, width: int) -> ir.Value:
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(["rows", width])
    return value


def _divide_norm(graph: ir.Graph, norm: ir.Node, step: float) -> None:
    place = NORM_WEIGHT[norm.op_type]
    weight = norm.inputs[place]
    if weight is None or weight.dtype is None or weight.shape is None:
        raise ValueError(f"{norm.name} has no weight")
    shape = weight.shape.numpy()

    def divided() -> Array:
        numbers = data(weight)
        return (numbers.astype(np.float32) / step).astype(numbers.dtype)

    norm.replace_input_with(place, add_initializer(graph, f"{weight.name}.fp8", weight.dtype, shape, divided))


def _number(linear: QuantizedLinear) -> float:
    if linear.input_scale is None:
        raise ValueError(f"{linear.name} does not round its activations")
    return float(data(linear.input_scale).item())


def _power_of_two(*steps: float) -> float:
    """The least one that none of them exceeds: fp8 has as many digits at any scale."""
    return float(2.0 ** ceil(log2(max(steps))))
