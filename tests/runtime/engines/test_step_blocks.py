"""How a step's work is cut: nobody idles, rings fit, and a multiprocessor takes one block of attention."""

from dataclasses import replace
from math import ceil

import pytest
from fakes import FACTS
from reflectrt.runtime.contract import CacheDtype
from reflectrt.runtime.engines.step_blocks import (
    ATTENTION_WARPS,
    DEEPEST,
    RING_BYTES,
    attention_bytes,
    most_tokens,
    ring_depth,
    row_blocks,
    tile_pairs,
    warps_for,
)

SEVEN_BILLION = replace(FACTS, hidden=3584, kv_heads=4, head_dim=128, cache_dtype="float")
SHARED = {"8.0": 166_912, "8.9": 101_376, "9.0": 232_448}
"""Of a block, by compute capability (CUDA C++ programming guide)."""


@pytest.mark.parametrize(("parts", "warps"), [(56, 8), (28, 7), (14, 7), (148, 8), (296, 8), (4, 4), (74, 7)])
def test_warps_share_a_row_without_idling(parts: int, warps: int) -> None:
    assert warps_for(parts) == warps


@pytest.mark.parametrize(("pairs", "blocks"), [(2304, 396), (1792, 264), (18_944, 396), (1792, 216), (128, 264)])
def test_no_block_has_much_more_to_do_than_another(pairs: int, blocks: int) -> None:
    size = tile_pairs(pairs, blocks)
    most = ceil(ceil(pairs / size) / blocks) * size
    assert 3 <= size <= 8
    assert most <= max(3, 1.25 * pairs / blocks)


def test_query_rows_come_in_eights_or_sixteens() -> None:
    assert [row_blocks(queries) for queries in (7, 8, 9, 16, 35, 56)] == [1, 1, 1, 1, 3, 4]


@pytest.mark.parametrize("limit", SHARED.values(), ids=list(SHARED))
@pytest.mark.parametrize(("head_dim", "kind"), [(128, "float"), (128, "int8"), (64, "float"), (64, "float8e4m3fn")])
def test_attention_s_ring_fits_and_its_block_is_alone(limit: int, head_dim: int, kind: CacheDtype) -> None:
    model = replace(SEVEN_BILLION, head_dim=head_dim, cache_dtype=kind)
    asked, depth = attention_bytes(model, limit), ring_depth(model, limit)
    unit = ATTENTION_WARPS * 16 * head_dim * (2 if kind == "float" else 1)
    assert 2 <= depth <= DEEPEST
    assert depth * unit <= min(asked, RING_BYTES)
    assert limit < 2 * asked <= 2 * limit


def test_the_forced_answer_is_one_step_on_every_gpu() -> None:
    """Five tokens: the end of reflection and the answer's opening."""
    assert all(most_tokens(limit, SEVEN_BILLION.hidden) >= 5 for limit in SHARED.values())
