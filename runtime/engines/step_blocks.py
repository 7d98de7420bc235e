"""How the work of a step's kernels is cut into blocks, warps and rings (`step_product.cu`, `step_attention.cu`)."""

from __future__ import annotations

from math import ceil

from ..contract import FLOAT
from ..kernels.arguments import GATE_UP, QKV, RESIDUAL
from ..manifest import ModelFacts

MAX_TOKENS = 8
"""Columns of the tensor cores' narrowest product: a step's token, or those of the forced answer behind a reflection."""
WARPS, ATTENTION_WARPS, FINISH_WARPS = 8, 8, 16
"""Of a product's block, at most; of attention's; of the last norm's."""
BLOCKS = {QKV: 3, RESIDUAL: 2, GATE_UP: 3}
"""Blocks of a product that a multiprocessor has registers for."""
PADDING_BYTES, SUM_BYTES, LINE_BYTES = 64, 2048 + 32, 128
"""Of a token: behind its normed inputs in shared memory; in a block's sums, at most. What the first start on."""
UNIT_KEYS, QUERY_ROWS = 16, 16
"""Of which a warp of attention takes keys, or values, at a time; query rows of its block, at most."""
SHALLOWEST, DEEPEST, RING_BYTES = 2, 8, 3 * 2**15
"""Units on the way to a warp of attention, at least and at most; bytes on the way to a block, at most."""


def warps_for(parts: int) -> int:
    """Warps of a product's block, which share a row's parts of 128 bytes: the most that idle little at its end."""
    idle = {warps: ceil(parts / warps) * warps / parts for warps in range(WARPS, 3, -1)}
    return next((warps for warps, share in idle.items() if share < 1.05), min(idle, key=idle.__getitem__))


def tile_pairs(pairs: int, blocks: int) -> int:
    """Pairs of rows of a tile, 8 or fewer, so that `blocks` that each take every so many tiles have nearly the same.

    A tile costs what its pairs do, and as much as one of them on top.
    """

    def longest(size: int) -> int:
        tiles = ceil(pairs / size)
        return ceil(tiles / blocks) * (size + 1)

    return min(range(8, 2, -1), key=longest)


def row_blocks(queries: int) -> int:
    """Blocks of attention that share a kv head's query rows, up to 8 or 16 each."""
    return ceil(queries / (8 if queries <= 8 else QUERY_ROWS))


def normed_bytes(tokens: int, hidden: int) -> int:
    """Shared memory of a product that norms its inputs, which lie there."""
    return tokens * (2 * hidden + PADDING_BYTES)


def most_tokens(shared: int, hidden: int) -> int:
    """Tokens of the longest step whose normed inputs and sums lie in a block's shared memory."""
    return max(1, min(MAX_TOKENS, (shared - LINE_BYTES) // (normed_bytes(1, hidden) + SUM_BYTES)))


def ring_depth(model: ModelFacts, shared: int) -> int:
    """Units on the way to each warp of attention: as many as a block's shared memory and RING_BYTES take."""
    return max(SHALLOWEST, min(DEEPEST, min(RING_BYTES, shared - SUM_BYTES) // _unit_bytes(model)))


def attention_bytes(model: ModelFacts, shared: int) -> int:
    """Shared memory of attention: its ring, then its outputs, and so much that a multiprocessor takes one block alone.

    Two in one place would leave another without, and attention takes as long as its slowest block.
    """
    outputs = 4 * ATTENTION_WARPS * QUERY_ROWS * (model.head_dim + 12)
    return max(ring_depth(model, shared) * _unit_bytes(model), outputs, shared // 2 + 1024)


def _unit_bytes(model: ModelFacts) -> int:
    """Of keys or values, for all warps of a block."""
    return ATTENTION_WARPS * UNIT_KEYS * model.head_dim * (2 if model.cache_dtype == FLOAT else 1)
