"""Lowering for CUDA: ONNX Runtime's fused operators, none of which leaves the device.

    TensorScatter x 2 + Attention under the causal mask  ->  GroupQueryAttention (`export/lower/cached_attention.py`)
    q, k and v projections                               ->  one product over weights side by side
    gate * Sigmoid(gate) * up                            ->  QuickGelu(gate, alpha = 1) * up
    Add (+ bias) + RMSNormalization                      ->  SkipSimplifiedLayerNormalization
    MLPs of an inner width that tensor cores do not like ->  padded (`export/lower/cuda_align.py`)
    windowed attention of the vision encoder             ->  PackedMultiHeadAttention (`export/lower/cuda_vision.py`)
    biases of its wide products                          ->  a column of ones (`export/lower/cuda_bias.py`)
    quantized weights                                    ->  MatMulNBits (`export/lower/cuda_quantized.py`)
    a layer of an fp8 decoder up to its MLP, for long runs  (`export/lower/cuda_fp8.py`)
    float matrices that kernels of our own read as well  ->  FusedMatMul by rows (`export/lower/cuda_rows.py`)

The decoder's steps run as CUDA graphs, which allow no copy between host and device: what is computed from shapes stays
on the host, what is computed from `past_length` on the device, and nothing mixes the two. Gate and up stay apart: side
by side they need a Split, two more passes over the widest activations.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# Patterns are values of onnxscript's tape, which has no types.

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.rewriter import MatchResult, RewriteRuleSet, pattern

from . import cached_attention, cpu
from .block_weights import MICROSOFT
from .cuda_align import align_inner_width
from .cuda_bias import fold_biases
from .cuda_half import multiply_in_half
from .cuda_pack import pack_projections
from .cuda_quantized import lower_quantized
from .cuda_scratch import note_row_bytes
from .cuda_vision import pack_windows


def lower(model: ir.Model) -> ir.Model:
    """The portable model rewritten in place for ONNX Runtime's CUDA provider."""
    _fuse(model)
    return _finished(model)


def _fuse(model: ir.Model) -> None:
    model.opset_imports[MICROSOFT] = 1
    pack_windows(model)
    positions = next((value for value in model.graph.inputs if value.name == "positions"), None)
    rules = [
        CachedAttention.rule(positions),
        *(QuantizedCachedAttention.rule(positions, whole=whole) for whole in (True, False)),
        FullAttention.rule(),
        Silu.rule(),
        SkipBiasNorm.rule(),
        cpu.SkipNorm.rule(),
    ]
    RewriteRuleSet(rules).apply_to_model(model)
    pack_projections(model)


def _finished(model: ir.Model) -> ir.Model:
    lower_quantized(model)
    align_inner_width(model)
    fold_biases(model)
    multiply_in_half(model)
    for tidy in (passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass()):
        tidy(model)
    note_row_bytes(model)
    return model


def rotary(op, x, cos, sin):
    """Rotate x [B, T, H * d] by cos, sin [B, T, d/2], the same for every B.

    The CUDA provider has Microsoft's operator only: row `offset + t` of a table turns token t. The table is this run's
    angles, so it needs no other positions than an offset of 0, and M-RoPE costs nothing extra.
    """
    first = op.Constant(value=ir.tensor(0, dtype=ir.DataType.INT64))
    offset = op.Constant(value=ir.tensor([0], dtype=ir.DataType.INT64))
    tables = (op.Gather(angles, first, axis=0) for angles in (cos, sin))
    return op.RotaryEmbedding(x, offset, *tables, _domain=MICROSOFT)


class OnDevice(pattern.RewriteRuleClassBase):
    """The decoder's attention; its lengths are known without a look at the host's or the device's other side."""

    def __init__(self, positions: ir.Value | None, **more) -> None:
        super().__init__(**more)
        self.positions = positions

    def rotate(self, op, x, cos, sin, count):  # noqa: ARG002  # the tables are as wide as a head
        return rotary(op, x, cos, sin)

    def lengths(self, op, query, past, key_cache):  # noqa: ARG002  # its shape is on the host
        """Index of the last row [1] on the device; and on the host the cache's capacity, a bound on the rows [].

        The tokens of this run are counted from `positions`, since a shape is on the host.
        """
        first, one, row = (ir.tensor([n], dtype=ir.DataType.INT64) for n in (0, 1, 1))
        text = op.Gather(self.positions, op.Constant(value=first), axis=0)
        ones = op.Cast(op.Equal(text, text), to=ir.DataType.INT64)
        tokens = op.ReduceSum(ones, op.Constant(value=row), keepdims=0)
        last = op.Sub(op.Add(past, tokens), op.Constant(value=one))
        no_axes = op.Constant(value=ir.tensor([], dtype=ir.DataType.INT64))
        capacity = op.Reshape(op.Shape(key_cache, start=2, end=3), no_axes)
        return op.Cast(last, to=ir.DataType.INT32), op.Cast(capacity, to=ir.DataType.INT32)


class CachedAttention(OnDevice, cached_attention.CachedAttention):
    """Over a cache of the activation type."""


class QuantizedCachedAttention(OnDevice, cached_attention.QuantizedCachedAttention):
    """Over a cache of int8 or fp8; the operator scales by channel with any number of heads in a group."""


class FullAttention(cpu.FullAttention):
    """Blocks of the vision encoder that attend over a whole temporal grid; the grids are the batch."""

    def rewrite(self, op, query, key, value, cos, sin, turned_query, **_):
        turned = (rotary(op, x, cos, sin) for x in (query, key))
        return op.MultiHeadAttention(*turned, value, num_heads=turned_query.shape[1], _domain=MICROSOFT)


class Silu(pattern.RewriteRuleClassBase):
    """`x * Sigmoid(x)`, which QuickGelu is where alpha is 1."""

    def pattern(self, op, x):
        return op.Mul(x, op.Sigmoid(x))

    def rewrite(self, op, x):
        return op.QuickGelu(x, alpha=1.0, _domain=MICROSOFT)


class SkipBiasNorm(pattern.RewriteRuleClassBase):
    """A residual sum whose update ends in a bias, and the norm that reads it."""

    def pattern(self, op, x, product, bias, weight, epsilon):
        total = op.Add(x, op.Add(product, bias))
        return op.RMSNormalization(total, weight, axis=-1, epsilon=epsilon, stash_type=1), total

    def check(self, op, bias, **_):  # noqa: ARG002  # the rewriter names it
        result = MatchResult()
        if not (bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1):
            result.fail("the update does not end in a bias")
        return result

    def rewrite(self, op, x, product, bias, weight, epsilon):
        normed, _mean, _deviation, total = op.SkipSimplifiedLayerNormalization(
            x, product, weight, bias, epsilon=epsilon.as_float(), _domain=MICROSOFT, _outputs=4
        )
        return normed, total
