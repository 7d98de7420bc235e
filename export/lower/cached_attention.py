"""The decoder's attention over its caches as one operator of ONNX Runtime, which updates them in place.

    TensorScatter x 2 + Attention under the causal mask  ->  GroupQueryAttention
    the same over int8 or fp8 (`quantize/kv_cache.py`)   ->  GroupQueryAttention that rounds and scales by itself
    the same where the operator takes no fp8             ->  rows rounded through fp8, GroupQueryAttention over floats

Targets say how they rotate and how they come by the lengths.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, override"
# Patterns are values of onnxscript's tape, which has no types; each names as many as it matches.

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import pattern

from .block_weights import MICROSOFT

HEADS_SECOND = [0, 2, 1, 3]  # [B, T, H, d] <-> [B, H, T, d]


def heads(op, x, shape):
    """[B, T, H * d] -> [B, H, T, d]."""
    return op.Transpose(op.Reshape(x, shape), perm=HEADS_SECOND)


class CachedAttention(pattern.RewriteRuleClassBase):
    """What `SelfAttention` in `export/graphs/decoder.py` traces to, between its projections."""

    def pattern(self, op, query, key, value, cos, sin, key_cache, value_cache, past, mask, q_shape, kv_shape, shape):
        turned_query = op.RotaryEmbedding(heads(op, query, q_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(heads(op, key, kv_shape), cos, sin)
        keys = op.TensorScatter(key_cache, turned_key, past, axis=2, mode="linear")
        values = op.TensorScatter(value_cache, heads(op, value, kv_shape), past, axis=2, mode="linear")
        attended = op.Attention(turned_query, keys, values, mask)
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape), keys, values

    def rewrite(self, op, query, key, value, cos, sin, key_cache, value_cache, past, turned_query, **others):
        query_heads, kv_heads = turned_query.shape[1], key_cache.shape[1]
        scales = [others[name] for name in ("key_scale", "value_scale") if name in others]
        rows, more_inputs, attributes = self.stored(op, [self.rotate(op, key, cos, sin, kv_heads), value], scales)
        return op.GroupQueryAttention(
            self.rotate(op, query, cos, sin, query_heads),
            *rows,
            key_cache,
            value_cache,
            *self.lengths(op, query, past, key_cache),
            *more_inputs,
            num_heads=query_heads,
            kv_num_heads=kv_heads,
            **attributes,
            _domain=MICROSOFT,
            _outputs=3,
        )

    def stored(self, op, rows, scales):  # noqa: ARG002  # for caches that do
        """Rows of keys and values [B, T, H * d], and the inputs and attributes that say how they are stored."""
        return rows, [], {}

    def rotate(self, op, x, cos, sin, count):
        """Rotate the `count` heads of x [B, T, H * d]."""
        return op.RotaryEmbedding(x, cos, sin, num_heads=count)

    def lengths(self, op, query, past, key_cache):  # noqa: ARG002  # other targets count otherwise
        """What implies the operator's mask: index of the last row [1], number of rows [], int32."""
        total = op.Add(past, op.Shape(query, start=1, end=2))
        one, no_axes = ir.tensor([1], dtype=ir.DataType.INT64), ir.tensor([], dtype=ir.DataType.INT64)
        last = op.Sub(total, op.Constant(value=one))
        scalar = op.Reshape(total, op.Constant(value=no_axes))
        return op.Cast(last, to=ir.DataType.INT32), op.Cast(scalar, to=ir.DataType.INT32)


class QuantizedCachedAttention(CachedAttention):
    """`CachedAttention` over a cache of 8-bit numbers; ONNX Runtime's CPU has it for int8 since 1.32."""

    def __init__(self, *, whole: bool) -> None:
        """`whole` as in `CacheType`."""
        super().__init__()
        self.whole = whole

    def pattern(
        self, op, query, key, value, cos, sin, key_cache, value_cache, past, mask, q_shape, kv_shape, shape,
        key_scale, value_scale, lowest, highest, kind, floating,
    ):  # fmt: skip
        turned_query = op.RotaryEmbedding(heads(op, query, q_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(heads(op, key, kv_shape), cos, sin)

        def scattered(cache, rows, scale):
            numbers = op.Div(rows, scale)
            clipped = op.Clip(op.Round(numbers) if self.whole else numbers, lowest, highest)
            updated = op.TensorScatter(cache, op.Cast(clipped, to=kind), past, axis=2, mode="linear")
            return updated, op.Mul(op.Cast(updated, to=floating), scale)

        keys, scaled_keys = scattered(key_cache, turned_key, key_scale)
        values, scaled_values = scattered(value_cache, heads(op, value, kv_shape), value_scale)
        attended = op.Attention(turned_query, scaled_keys, scaled_values, mask)
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape), keys, values

    def stored(self, op, rows, scales):  # noqa: ARG002
        """The operator rounds: it takes float32 scales [1, H, 1, d] behind five inputs that are not used."""
        kinds = dict.fromkeys(("k_quant_type", "v_quant_type"), "PER_CHANNEL")
        return rows, [None] * 5 + [_in_float32(scale) for scale in scales], {**kinds, "kv_cache_bit_width": 8}


class RoundedCachedAttention(QuantizedCachedAttention):
    """`CachedAttention` whose rows are rounded through fp8 and stored as floats: fp8's error without its memory."""

    def stored(self, op, rows, scales):
        """Rows as an fp8 cache would give them back."""
        return [self._rounded(op, *pair) for pair in zip(rows, scales, strict=True)], [], {}

    def _rounded(self, op, rows, scale):
        flat = op.Reshape(scale, op.Constant(value=ir.tensor([-1], dtype=ir.DataType.INT64)))
        numbers = op.Cast(op.Div(rows, flat), to=ir.DataType.FLOAT8E4M3FN)  # saturates
        return op.Mul(op.Cast(numbers, to=ir.DataType.FLOAT), flat)


def _in_float32(scale: ir.Value) -> ir.Value:
    """A scale as the recipe has it, in front of its cast to the activation type."""
    cast = scale.producer()
    source = cast.inputs[0] if cast is not None else scale
    if source is None:
        raise ValueError(f"{scale.name} comes from nothing")
    return source


def store_as_float(model: ir.Model) -> None:
    """Caches of fp8 become caches of float32, in a graph whose rows are rounded already."""
    for port in (*model.graph.inputs, *model.graph.outputs):
        if port.dtype == ir.DataType.FLOAT8E4M3FN:
            port.type = ir.TensorType(ir.DataType.FLOAT)
