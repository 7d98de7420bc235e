"""Operations and bytes of a graph run, counted from the graph and its input shapes.

operations   2 M N K of a matrix product; 4 D of each query-key pair that attention visits, for every head (of a
             causal one only the pairs it may see); 4 an element of a norm, 3 of a rotary embedding, 1 of any other
             arithmetic on floats. What only moves data counts nothing, nor do shapes. Products of 8-bit integers
             stand apart: their ceiling is another one.
bytes        what must move even if every operator were fused: each weight once (of a table only the rows looked
             up), the graph's inputs and outputs, keys and values that attention reads and the rows it writes.
between      bytes of the tensors between operators, written once and read once: what fusing could save at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass

from .graph import Graph, Step
from .shapes import walk

CACHE = ("key_cache", "value_cache")  # how the contract's cache ports begin


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one or several graph runs."""

    float_ops: int = 0
    integer_ops: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    """Inputs and outputs of the graphs."""
    cache_bytes: int = 0
    """Keys and values read, and written."""
    between_bytes: int = 0
    """Tensors between operators; not part of `bytes`."""

    @property
    def ops(self) -> int:
        """All operations."""
        return self.float_ops + self.integer_ops

    @property
    def bytes(self) -> int:
        """What must move."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def count(graph: Graph, shapes: Mapping[str, tuple[int, ...]], past: int = 0) -> tuple[Work, set[str]]:
    """Work of one run at these input shapes with `past` rows in the cache, and operators that have no rule."""
    found = walk(graph, shapes)
    integers = integer_steps(found.steps)
    float_ops = sum(operations(step, past) for step in found.steps if step.output_names[0] not in integers)
    integer_ops = sum(operations(step, past) for step in found.steps if step.output_names[0] in integers)
    ports = [name for name in (*graph.inputs, *graph.outputs) if not name.startswith(CACHE)]
    work = Work(
        float_ops=float_ops,
        integer_ops=integer_ops,
        weight_bytes=_weight_bytes(found.steps),
        activation_bytes=sum(found.tensors[name].bytes for name in ports),
        cache_bytes=sum(_cache_bytes(step, past) for step in found.steps),
        between_bytes=2 * sum(_between(step) for step in found.steps),
    )
    return work, found.unknown


INTEGER = ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def integer_steps(steps: Iterable[Step]) -> set[str]:
    """First outputs of the products of 8-bit integers: written so, or of two tensors that come dequantized.

    (Engines fuse DequantizeLinear -> MatMul <- DequantizeLinear into one integer product.)
    """
    found, dequantized = set(), set()
    for step in steps:
        if step.op == "DequantizeLinear":
            dequantized.add(step.output_names[0])
        if step.op in INTEGER or (step.op in ("MatMul", "Gemm") and dequantized.issuperset(step.input_names[:2])):
            found.add(step.output_names[0])
    return found


def operations(step: Step, past: int) -> int:
    """Operations of one node."""
    rule = OPERATIONS.get(step.op)
    return rule(step, past) if rule else 0


def _product(left: int) -> Callable[[Step, int], int]:
    return lambda step, _: 2 * step.outputs[0].elements * step.input(left).shape[-1]


def _gemm(step: Step, _: int) -> int:
    inner = step.input(0).shape[0 if step.attributes.get("transA") else 1]
    return 2 * step.outputs[0].elements * inner


def _packed_product(step: Step, _: int) -> int:
    return 2 * step.outputs[0].elements * int(step.attributes["K"])


def _causal_pairs(tokens: int, past: int) -> int:
    """Query-key pairs where token i sees the past and tokens 0..i."""
    return tokens * past + tokens * (tokens + 1) // 2


def _grouped_attention(step: Step, past: int) -> int:
    batch, tokens, width = step.input(0).shape
    return 4 * batch * width * _causal_pairs(tokens, past)


def _multi_head_attention(step: Step, _: int) -> int:
    query, keys = step.input(0), step.inputs[1]
    batch, tokens, width = query.shape[0], query.shape[1], query.shape[-1]
    if len(query.shape) == 5:  # packed [B, T, H, 3, d]
        return 4 * batch * tokens**2 * query.shape[2] * width
    rows = keys.shape[-2] if keys is not None else tokens
    return 4 * batch * tokens * rows * width


def _packed_attention(step: Step, _: int) -> int:
    """Each of the tokens [T, D] against its own window; the offsets are [windows, places], taken for full."""
    tokens, width = step.input(0).shape
    return 4 * width * tokens * step.input(4).shape[1]


def _attention(step: Step, past: int) -> int:
    query, keys = step.input(0), step.input(1)
    if len(query.shape) == 3:
        return _multi_head_attention(step, past)
    batch, heads, tokens, width = query.shape
    pairs = _causal_pairs(tokens, 0) if step.attributes.get("is_causal") else tokens * keys.shape[2]
    return 4 * batch * heads * width * pairs


def _each(per_element: int) -> Callable[[Step, int], int]:
    return lambda step, _: per_element * step.outputs[0].elements if step.input(0).is_float else 0


_FP8_PRODUCTS = {"MatMulBlockQuantizedFp8Weight": 0}
_PRODUCTS = _FP8_PRODUCTS | {
    "MatMul": 0,
    "FusedMatMul": 0,
    "MatMulInteger": 0,
    "DynamicQuantizeMatMul": 0,
    "MatMulIntegerToFloat": 0,
}
_ONE = (
    "Add Sub Mul Div Pow Neg Sigmoid Tanh Cos Sin Sqrt Exp Erf Reciprocal Gelu FastGelu QuickGelu Softmax Relu Max Min"
)
OPERATIONS: dict[str, Callable[[Step, int], int]] = (
    {op: _product(left) for op, left in _PRODUCTS.items()}
    | dict.fromkeys(_ONE.split(), _each(1))
    | {
        "QLinearMatMul": _product(0),
        "Gemm": _gemm,
        "MatMulNBits": _packed_product,
        "GroupQueryAttention": _grouped_attention,
        "MultiHeadAttention": _multi_head_attention,
        "PackedMultiHeadAttention": _packed_attention,
        "Attention": _attention,
        "RMSNormalization": _each(4),
        "SimplifiedLayerNormalization": _each(4),
        "SkipSimplifiedLayerNormalization": _each(5),
        "RotaryEmbedding": _each(3),
    }
)

TABLES = {"Gather": (0,), "GatherBlockQuantized": (0, 2)}
"""Inputs whose rows are looked up."""
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant")


def _weight_bytes(steps: Iterable[Step]) -> int:
    """Each weight once; of a table that rows are looked up in, those rows."""
    whole: dict[str, int] = {}
    rows = 0
    for step in steps:
        for place, (name, tensor) in enumerate(zip(step.input_names, step.inputs, strict=True)):
            if tensor is None or not tensor.weight:
                continue
            if place in TABLES.get(step.op, ()):
                rows += min(tensor.bytes, step.input(1).elements * (tensor.bytes // tensor.shape[0]))
            else:
                whole[name] = tensor.bytes
    return rows + sum(whole.values())


def _cache_bytes(step: Step, past: int) -> int:
    """Keys and values that a node reads and writes; only a fused attention knows how far the cache is filled."""
    if step.op == "TensorScatter":
        return step.input(1).bytes
    if step.op == "Attention":
        pairs = zip(step.input_names[1:3], step.inputs[1:3], strict=True)
        return sum(tensor.bytes for name, tensor in pairs if tensor and name.startswith(CACHE))
    if step.op != "GroupQueryAttention":
        return 0
    tokens, cache = step.input(0).shape[1], step.input(3)
    row = cache.bytes // cache.shape[2]
    return 2 * row * (past + 2 * tokens)  # keys and values: past and new rows read, new rows written


def _between(step: Step) -> int:
    """Bytes of the tensor that a node makes; none where it is a shape, or only seen anew."""
    if step.op in VIEWS:
        return 0
    first = step.outputs[0]  # others are statistics, or the cache
    return 0 if first.value is not None else first.bytes
