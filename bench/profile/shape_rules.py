"""What comes out of each operator: shape, element type, and (where it is small) value, from what goes in.

onnx's own inference stops at ONNX Runtime's fused operators, so the operators that bundles hold have rules here. One
that has none keeps its first input's shape and is named in `Walk.unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...runtime.engine import Array
from .graph import SMALL, Step, Tensor

Rule = Callable[[Step, int], Sequence[Tensor]]


def same(step: Step, outputs: int) -> Sequence[Tensor]:
    """Every output has the first input's shape and type."""
    first = step.input(0)
    return [Tensor(first.shape, first.kind)] * outputs


def _cast(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    kind = step.attributes.get("to") or step.input(1).kind
    return [Tensor(first.shape, kind, first.value)]


def _quantize(step: Step, _: int) -> Sequence[Tensor]:
    zero = step.inputs[2] if len(step.inputs) > 2 else None
    return [Tensor(step.input(0).shape, zero.kind if zero else step.attributes.get("output_dtype", TensorProto.UINT8))]


def _dequantize(step: Step, _: int) -> Sequence[Tensor]:
    return [Tensor(step.input(0).shape, step.input(1).kind)]


def _quantize_dynamic(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    return [Tensor(first.shape, TensorProto.UINT8), Tensor((), first.kind), Tensor((), TensorProto.UINT8)]


def _broadcast(step: Step, _: int) -> Sequence[Tensor]:
    known = [tensor for tensor in step.inputs if tensor is not None]
    shape = np.broadcast_shapes(*(tensor.shape for tensor in known))
    kind = TensorProto.BOOL if step.op in COMPARISONS else known[-1].kind
    values = [tensor.value for tensor in known]
    compute = ARITHMETIC.get(step.op)
    if compute is None or any(value is None for value in values) or known[0].is_float:
        return [Tensor(shape, kind)]
    return [Tensor(shape, kind, np.asarray(compute(*values)))]


COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.floor_divide,
    "Max": np.maximum,
    "Min": np.minimum,
}


def _shape(step: Step, _: int) -> Sequence[Tensor]:
    shape = step.input(0).shape[step.attributes.get("start", 0) : step.attributes.get("end")]
    return [Tensor((len(shape),), TensorProto.INT64, np.array(shape, np.int64))]


def _constant(step: Step, _: int) -> Sequence[Tensor]:
    name, given = next(iter(step.attributes.items()))
    value = numpy_helper.to_array(given) if name == "value" else np.asarray(given)
    kind = given.data_type if name == "value" else helper.np_dtype_to_tensor_dtype(value.dtype)
    return [Tensor(value.shape, kind, value if value.size <= SMALL else None)]


def _reshaped(first: Tensor, shape: Sequence[int]) -> Tensor:
    value = None if first.value is None else first.value.reshape(shape)
    return Tensor(tuple(int(size) for size in shape), first.kind, value)


def _reshape(step: Step, _: int) -> Sequence[Tensor]:
    first, wanted = step.input(0), [int(size) for size in _value(step, 1)]
    if not step.attributes.get("allowzero"):
        wanted = [first.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    known = prod(size for size in wanted if size != -1)
    return [_reshaped(first, [first.elements // known if size == -1 else size for size in wanted])]


def _squeeze(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    axes = _axes(step, len(first.shape)) or [axis for axis, size in enumerate(first.shape) if size == 1]
    return [_reshaped(first, [size for axis, size in enumerate(first.shape) if axis not in axes])]


def _unsqueeze(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    rank = len(first.shape) + len(_value(step, 1))
    sizes, axes = iter(first.shape), _axes(step, rank)
    return [_reshaped(first, [1 if axis in axes else next(sizes) for axis in range(rank)])]


def _axes(step: Step, rank: int) -> list[int]:
    return [int(axis) % rank for axis in _value(step, 1)] if len(step.inputs) > 1 else []


def _value(step: Step, place: int) -> Array:
    value = step.input(place).value
    if value is None:
        raise ValueError(f"{step.name}: the shape that {step.op} makes is not known from the inputs' sizes")
    return value.reshape(-1)


def _concat(step: Step, _: int) -> Sequence[Tensor]:
    known, axis = [tensor for tensor in step.inputs if tensor is not None], step.attributes["axis"]
    shape = list(known[0].shape)
    shape[axis] = sum(tensor.shape[axis] for tensor in known)
    values = [tensor.value for tensor in known if tensor.value is not None]
    value = np.concatenate(values, axis) if len(values) == len(known) else None
    return [Tensor(tuple(shape), known[0].kind, value)]


def _expand(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    return [Tensor(np.broadcast_shapes(first.shape, tuple(int(size) for size in _value(step, 1))), first.kind)]


def _tile(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    sizes = [size * int(times) for size, times in zip(first.shape, _value(step, 1), strict=True)]
    return [Tensor(tuple(sizes), first.kind)]


def _pad(step: Step, _: int) -> Sequence[Tensor]:
    first, widths = step.input(0), _value(step, 1).reshape(2, -1).sum(0)
    axes = _value(step, 3) if len(step.inputs) > 3 else range(len(first.shape))
    shape = list(first.shape)
    for axis, more in zip(axes, widths, strict=True):
        shape[int(axis)] += int(more)
    return [Tensor(tuple(shape), first.kind)]


def _transpose(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    order = step.attributes.get("perm") or tuple(reversed(range(len(first.shape))))
    return [Tensor(tuple(first.shape[axis] for axis in order), first.kind)]


def _gather(step: Step, _: int) -> Sequence[Tensor]:
    data, indices, axis = step.input(0), step.input(1), step.attributes.get("axis", 0) % len(step.input(0).shape)
    shape = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    if data.value is None or indices.value is None:
        return [Tensor(shape, data.kind)]
    return [Tensor(shape, data.kind, np.take(data.value, indices.value, axis))]


def _gather_quantized(step: Step, _: int) -> Sequence[Tensor]:
    """Rows of a table [rows, width], dequantized; numbers of 4 bits may share a byte."""
    table, ids, scales = step.input(0), step.input(1), step.input(2)
    packed = 8 // step.attributes.get("bits", 4) if table.kind == TensorProto.UINT8 else 1
    return [Tensor((*ids.shape, packed * table.shape[-1]), scales.kind)]


def _range(step: Step, _: int) -> Sequence[Tensor]:
    start, limit, delta = (int(_value(step, place)[0]) for place in range(3))
    value = np.arange(start, limit, delta)
    return [Tensor(value.shape, step.input(0).kind, value if value.size <= SMALL else None)]


def _reduce(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    axes = _axes(step, len(first.shape)) or range(len(first.shape))
    kept = [1] if step.attributes.get("keepdims", 1) else []
    shape = [part for axis, size in enumerate(first.shape) for part in (kept if axis in axes else [size])]
    return [Tensor(tuple(shape), first.kind)]


def _split(step: Step, outputs: int) -> Sequence[Tensor]:
    first = step.input(0)
    axis = step.attributes.get("axis", 0) % len(first.shape)
    sizes = _value(step, 1) if len(step.inputs) > 1 else [-(-first.shape[axis] // outputs)] * outputs
    return [Tensor((*first.shape[:axis], int(size), *first.shape[axis + 1 :]), first.kind) for size in sizes]


def _slice(step: Step, _: int) -> Sequence[Tensor]:
    first, starts, ends = step.input(0), _value(step, 1), _value(step, 2)
    axes = _value(step, 3) if len(step.inputs) > 3 else range(len(starts))
    strides = _value(step, 4) if len(step.inputs) > 4 else [1] * len(starts)
    cut = [slice(None)] * len(first.shape)
    for axis, start, end, stride in zip(axes, starts, ends, strides, strict=True):
        cut[int(axis)] = slice(int(start), int(end), int(stride))
    shape = tuple(len(range(size)[part]) for size, part in zip(first.shape, cut, strict=True))
    return [Tensor(shape, first.kind, None if first.value is None else first.value[tuple(cut)])]


def _product(left: int, right: int, kind: Callable[[Step], int]) -> Rule:
    def rule(step: Step, _: int) -> Sequence[Tensor]:
        a, b = step.input(left).shape, step.input(right).shape
        batch = np.broadcast_shapes(a[:-2], b[:-2])
        columns = b[-2:-1] if step.attributes.get("transB") else b[-1:]
        return [Tensor((*batch, *a[-2:-1], *columns), kind(step))]

    return rule


def _gemm(step: Step, _: int) -> Sequence[Tensor]:
    a, b = step.input(0).shape, step.input(1).shape
    rows = a[1] if step.attributes.get("transA") else a[0]
    columns = b[0] if step.attributes.get("transB") else b[1]
    return [Tensor((rows, columns), step.input(0).kind)]


def _packed_product(step: Step, _: int) -> Sequence[Tensor]:
    first = step.input(0)
    return [Tensor((*first.shape[:-1], step.attributes["N"]), first.kind)]


def _fp8_weight_product(step: Step, _: int) -> Sequence[Tensor]:
    """Its weight is [out, in]."""
    first = step.input(0)
    return [Tensor((*first.shape[:-1], step.input(1).shape[0]), first.kind)]


def _fp8_product(step: Step, _: int) -> Sequence[Tensor]:
    """[rows, in] by [out, in], in a type that it names."""
    return [Tensor((step.input(0).shape[0], step.input(1).shape[0]), int(step.attributes["dtype"]))]


def _attention(step: Step, outputs: int) -> Sequence[Tensor]:
    """Query's shape with the values' width; where a cache goes in (inputs 3 and 4), it comes out."""
    query, value = step.input(0), step.input(2) if len(step.inputs) > 2 else step.input(0)
    width = value.shape[-1] if len(query.shape) == 4 else query.shape[-1]
    cache = [tensor for tensor in step.inputs[3:5] if tensor is not None and len(tensor.shape) == 4]
    rest = [Tensor(tensor.shape, tensor.kind) for tensor in cache] or [value] * 2
    return [Tensor((*query.shape[:-1], width), query.kind), *rest][:outputs]


def _kind(place: int) -> Callable[[Step], int]:
    return lambda step: step.input(place).kind


_SAME = (
    "Identity Neg Sigmoid Tanh Cos Sin Sqrt Exp Erf Reciprocal Clip Gelu FastGelu QuickGelu Softmax Not Relu "
    "RMSNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization LayerNormalization "
    "RotaryEmbedding MRotaryEmbedding TensorScatter Trilu BiasGelu CumSum ScatterElements PackedMultiHeadAttention"
)
_BROADCAST = "Add Sub Mul Div Pow Max Min And Or Where Equal Greater GreaterOrEqual Less LessOrEqual"
RULES: dict[str, Rule] = (
    dict.fromkeys(_SAME.split(), same)
    | dict.fromkeys(_BROADCAST.split(), _broadcast)
    | dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _attention)
    | {
        "Cast": _cast,
        "CastLike": _cast,
        "QuantizeLinear": _quantize,
        "DequantizeLinear": _dequantize,
        "DynamicQuantizeLinear": _quantize_dynamic,
        "Shape": _shape,
        "Constant": _constant,
        "Reshape": _reshape,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Concat": _concat,
        "Expand": _expand,
        "Tile": _tile,
        "Pad": _pad,
        "Transpose": _transpose,
        "Gather": _gather,
        "GatherBlockQuantized": _gather_quantized,
        "Range": _range,
        "ReduceSum": _reduce,
        "Split": _split,
        "Slice": _slice,
        "Gemm": _gemm,
        "MatMul": _product(0, 1, _kind(0)),
        "FusedMatMul": _product(0, 1, _kind(0)),
        "MatMulInteger": _product(0, 1, lambda _: TensorProto.INT32),
        "DynamicQuantizeMatMul": _product(0, 1, _kind(0)),
        "MatMulIntegerToFloat": _product(0, 1, _kind(2)),
        "QLinearMatMul": _product(0, 3, _kind(7)),
        "MatMulNBits": _packed_product,
        "MatMulBlockQuantizedFp8Weight": _fp8_weight_product,
    }
)
