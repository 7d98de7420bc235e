"""Lowering for the CPU: ONNX Runtime's fused operators in place of what its CPU kernels run slowly or copy.

    TensorScatter x 2 + Attention under the causal mask  ->  GroupQueryAttention over a cache updated in place
    the same over an int8 cache (`quantize/kv_cache.py`) ->  GroupQueryAttention that rounds and scales by itself
    Attention without a mask                             ->  MultiHeadAttention (tiled: memory grows with N, not N^2)
    Add + RMSNormalization                               ->  SkipSimplifiedLayerNormalization
    quantized Linears                                    ->  integer products (`cpu_quantized.py`)

Measured with ONNX Runtime 1.32: its TensorScatter copies the cache, and its Attention holds all scores of a node at
once (533 MB for 2 heads over 8,192 patches; MultiHeadAttention 18 MB).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# Patterns are values of onnxscript's tape, which has no types.

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.rewriter import RewriteRuleSet, pattern

from .cpu_quantized import lower_quantized

MICROSOFT = "com.microsoft"
HEADS_SECOND = [0, 2, 1, 3]  # [B, T, H, d] <-> [B, H, T, d]


def lower(model: ir.Model) -> ir.Model:
    """The portable model rewritten in place for ONNX Runtime's CPU provider."""
    lower_quantized(model)
    rules = [CachedAttention.rule(), QuantizedCachedAttention.rule(), FullAttention.rule(), SkipNorm.rule()]
    RewriteRuleSet(rules).apply_to_model(model)
    model.opset_imports[MICROSOFT] = 1
    for tidy in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        tidy(model)
    return model


def _heads(op, x, shape):
    """[B, T, H * d] -> [B, H, T, d]."""
    return op.Transpose(op.Reshape(x, shape), perm=HEADS_SECOND)


class CachedAttention(pattern.RewriteRuleClassBase):
    """What `SelfAttention` in `export/graphs/decoder.py` traces to, between its projections."""

    def pattern(self, op, query, key, value, cos, sin, key_cache, value_cache, past, mask, q_shape, kv_shape, shape):
        turned_query = op.RotaryEmbedding(_heads(op, query, q_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(_heads(op, key, kv_shape), cos, sin)
        keys = op.TensorScatter(key_cache, turned_key, past, axis=2, mode="linear")
        values = op.TensorScatter(value_cache, _heads(op, value, kv_shape), past, axis=2, mode="linear")
        attended = op.Attention(turned_query, keys, values, mask)
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape), keys, values

    def rewrite(self, op, query, key, value, cos, sin, key_cache, value_cache, past, turned_query, **_):
        heads, kv_heads = turned_query.shape[1], key_cache.shape[1]
        last, total = _lengths(op, query, past)
        return op.GroupQueryAttention(
            op.RotaryEmbedding(query, cos, sin, num_heads=heads),
            op.RotaryEmbedding(key, cos, sin, num_heads=kv_heads),
            value,
            key_cache,
            value_cache,
            last,
            total,
            num_heads=heads,
            kv_num_heads=kv_heads,
            _domain=MICROSOFT,
            _outputs=3,
        )


class QuantizedCachedAttention(pattern.RewriteRuleClassBase):
    """`CachedAttention` over a cache of integers; ONNX Runtime has it since 1.32, in place like the other."""

    def pattern(
        self, op, query, key, value, cos, sin, key_cache, value_cache, past, mask, q_shape, kv_shape, shape,
        key_scale, value_scale, lowest, highest, integer, floating,
    ):  # fmt: skip
        turned_query = op.RotaryEmbedding(_heads(op, query, q_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(_heads(op, key, kv_shape), cos, sin)

        def scattered(cache, rows, scale):
            rounded = op.Clip(op.Round(op.Div(rows, scale)), lowest, highest)
            updated = op.TensorScatter(cache, op.Cast(rounded, to=integer), past, axis=2, mode="linear")
            return updated, op.Mul(op.Cast(updated, to=floating), scale)

        keys, scaled_keys = scattered(key_cache, turned_key, key_scale)
        values, scaled_values = scattered(value_cache, _heads(op, value, kv_shape), value_scale)
        attended = op.Attention(turned_query, scaled_keys, scaled_values, mask)
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape), keys, values

    def rewrite(self, op, query, key, value, cos, sin, key_cache, value_cache, past, turned_query, **others):
        heads, kv_heads = turned_query.shape[1], key_cache.shape[1]
        last, total = _lengths(op, query, past)
        return op.GroupQueryAttention(
            op.RotaryEmbedding(query, cos, sin, num_heads=heads),
            op.RotaryEmbedding(key, cos, sin, num_heads=kv_heads),
            value,
            key_cache,
            value_cache,
            last,
            total,
            *[None] * 5,
            others["key_scale"],
            others["value_scale"],
            num_heads=heads,
            kv_num_heads=kv_heads,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
            kv_cache_bit_width=8,
            _domain=MICROSOFT,
            _outputs=3,
        )


def _lengths(op, query, past):
    """GroupQueryAttention's lengths, which imply its mask: index of the last row [1], number of rows [], int32."""
    total = op.Add(past, op.Shape(query, start=1, end=2))
    one, no_axes = ir.tensor([1], dtype=ir.DataType.INT64), ir.tensor([], dtype=ir.DataType.INT64)
    last = op.Sub(total, op.Constant(value=one))
    scalar = op.Reshape(total, op.Constant(value=no_axes))
    return op.Cast(last, to=ir.DataType.INT32), op.Cast(scalar, to=ir.DataType.INT32)


class FullAttention(pattern.RewriteRuleClassBase):
    """What `VisionAttention` in `export/graphs/vision.py` traces to in blocks without windows."""

    def pattern(self, op, query, key, value, cos, sin, heads_shape, shape):
        turned_query = op.RotaryEmbedding(_heads(op, query, heads_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(_heads(op, key, heads_shape), cos, sin)
        attended = op.Attention(turned_query, turned_key, _heads(op, value, heads_shape))
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape)

    def rewrite(self, op, query, key, value, cos, sin, turned_query, **_):
        heads = turned_query.shape[1]
        return op.MultiHeadAttention(
            op.RotaryEmbedding(query, cos, sin, num_heads=heads),
            op.RotaryEmbedding(key, cos, sin, num_heads=heads),
            value,
            num_heads=heads,
            _domain=MICROSOFT,
        )


class SkipNorm(pattern.RewriteRuleClassBase):
    """A residual sum and the norm that reads it."""

    def pattern(self, op, x, update, weight, epsilon):
        total = op.Add(x, update)
        return op.RMSNormalization(total, weight, axis=-1, epsilon=epsilon, stash_type=1), total

    def rewrite(self, op, x, update, weight, epsilon, **_):
        normed, _mean, _deviation, total = op.SkipSimplifiedLayerNormalization(
            x, update, weight, epsilon=epsilon.as_float(), _domain=MICROSOFT, _outputs=4
        )
        return normed, total
