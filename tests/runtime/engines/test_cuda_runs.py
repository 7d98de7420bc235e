import pytest
from reflectrt.runtime.engines.cuda_runs import FAST, LEAST, SHARE, RowBytes, plan_runs
from reflectrt.runtime.errors import ResourceError

ROW = RowBytes(token=121_088, patch=23_424)  # the 7B shape in bfloat16


def test_runs_are_as_long_as_is_fast_where_memory_is_there() -> None:
    assert plan_runs(ROW, 60 * 2**30) == FAST
    assert plan_runs(ROW, int(ROW.need(FAST) / SHARE) + 1) == FAST


def test_runs_are_shorter_where_memory_is_short() -> None:
    free = int(ROW.need(FAST) / SHARE) // 2
    runs = plan_runs(ROW, free)
    assert LEAST.tokens < runs.tokens < FAST.tokens
    assert LEAST.patches < runs.patches < FAST.patches
    assert ROW.need(runs) <= SHARE * free


def test_the_shortest_runs_are_refused_with_numbers() -> None:
    need = ROW.need(LEAST)
    assert plan_runs(ROW, need) == LEAST
    with pytest.raises(ResourceError, match=rf"need {need / 1e6:.0f} MB .*, {(need - 1) / 1e6:.0f} MB are free; "):
        plan_runs(ROW, need - 1)


def test_a_bundle_that_does_not_say_runs_as_is_fast() -> None:
    assert plan_runs(RowBytes(0, 0), 0) == FAST
