"""Lowering for the CPU: ONNX Runtime's fused operators in place of what its CPU kernels run slowly or copy.

    TensorScatter x 2 + Attention under the causal mask  ->  GroupQueryAttention (`cached_attention.py`)
    Attention without a mask                             ->  MultiHeadAttention (tiled: memory grows with N, not N^2)
    Add + RMSNormalization                               ->  SkipSimplifiedLayerNormalization
    quantized Linears                                    ->  integer products (`cpu_quantized.py`)

Measured with ONNX Runtime 1.32: its TensorScatter copies the cache, and its Attention holds all scores of a node at
once (533 MB for 2 heads over 8,192 patches; MultiHeadAttention 18 MB). Its GroupQueryAttention takes int8 caches and no
fp8 ones, its TensorScatter neither: an fp8 cache is stored in float32 there.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# Patterns are values of onnxscript's tape, which has no types.

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.rewriter import RewriteRuleSet, pattern

from .block_weights import MICROSOFT
from .cached_attention import (
    HEADS_SECOND,
    CachedAttention,
    QuantizedCachedAttention,
    RoundedCachedAttention,
    heads,
    store_as_float,
)
from .cpu_quantized import lower_quantized


def lower(model: ir.Model) -> ir.Model:
    """The portable model rewritten in place for ONNX Runtime's CPU provider."""
    lower_quantized(model)
    caches = [
        CachedAttention.rule(),
        QuantizedCachedAttention.rule(whole=True),
        RoundedCachedAttention.rule(whole=False),
    ]
    RewriteRuleSet([*caches, FullAttention.rule(), SkipNorm.rule()]).apply_to_model(model)
    store_as_float(model)
    model.opset_imports[MICROSOFT] = 1
    for tidy in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        tidy(model)
    return model


class FullAttention(pattern.RewriteRuleClassBase):
    """What `VisionAttention` in `export/graphs/vision.py` traces to in blocks without windows."""

    def pattern(self, op, query, key, value, cos, sin, heads_shape, shape):
        turned_query = op.RotaryEmbedding(heads(op, query, heads_shape), cos, sin, _outputs=["turned_query"])
        turned_key = op.RotaryEmbedding(heads(op, key, heads_shape), cos, sin)
        attended = op.Attention(turned_query, turned_key, heads(op, value, heads_shape))
        return op.Reshape(op.Transpose(attended, perm=HEADS_SECOND), shape)

    def rewrite(self, op, query, key, value, cos, sin, turned_query, **_):
        count = turned_query.shape[1]
        return op.MultiHeadAttention(
            op.RotaryEmbedding(query, cos, sin, num_heads=count),
            op.RotaryEmbedding(key, cos, sin, num_heads=count),
            value,
            num_heads=count,
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
