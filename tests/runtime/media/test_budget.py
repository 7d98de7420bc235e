"""Sizes against the formulas of qwen-vl-utils, written out here anew."""

import math

import numpy as np
import pytest
from reflectrt.runtime.errors import MediaError, UsageError
from reflectrt.runtime.media import ImageBudget, MediaLimits, VideoBudget, smart_resize
from reflectrt.runtime.media.budget import frame_size
from reflectrt.runtime.media.sampling import Timeline, frame_count

FACTOR = 28


def reference_frame_cap(frames: int, budget: VideoBudget) -> float:
    share = budget.total_pixels / frames * 2
    return min(budget.max_pixels, max(min(768 * 784, share), int(budget.min_pixels * 1.05)))


@pytest.mark.parametrize("low, high", [(4 * 784, 16_384 * 784), (4096 * 784, 16_384 * 784), (16 * 784, 64 * 784)])
def test_sides_are_multiples_within_the_budget_and_keep_the_aspect(low: int, high: int) -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(30, 9000, (300, 2)).tolist():
        if max(height, width) >= 20 * min(height, width):
            continue
        rows, columns = smart_resize(height, width, FACTOR, low, high)
        assert rows % FACTOR == columns % FACTOR == 0
        assert low <= rows * columns <= high
        step = max(FACTOR / rows, FACTOR / columns)  # rounding may move each side by up to one factor
        assert abs(math.log(rows / columns) - math.log(height / width)) < 2.1 * step


@pytest.mark.parametrize("height, width", [(1, 1), (1, 199), (199, 1), (3, 500)])
def test_tiny_pictures_grow_to_the_floor(height: int, width: int) -> None:
    rows, columns = smart_resize(height, width, FACTOR, 4 * 784, 16_384 * 784)
    assert rows >= FACTOR
    assert columns >= FACTOR
    assert rows * columns >= 4 * 784


@pytest.mark.parametrize("height, width", [(1, 200), (20_000, 1), (40, 8100)])
def test_too_long_and_thin_is_refused_with_its_size(height: int, width: int) -> None:
    with pytest.raises(MediaError, match=f"{width} x {height} px.*200"):
        smart_resize(height, width, FACTOR, 784, 784 * 784)


@pytest.mark.parametrize("frames", [1, 2, 36, 40, 128, 512, 5000])
def test_frames_share_the_total(frames: int) -> None:
    for budget in (VideoBudget(), VideoBudget(max_frames=256, min_pixels=16 * 784, max_pixels=768 * 784)):
        cap = reference_frame_cap(frames, budget)
        expected = smart_resize(1080, 1920, FACTOR, budget.min_pixels, cap)
        assert frame_size(1080, 1920, frames, FACTOR, budget) == expected
        assert expected[0] * expected[1] <= cap


def test_a_cap_under_the_floor_wins() -> None:
    rows, columns = frame_size(480, 640, 8, FACTOR, VideoBudget(min_pixels=64 * 784, max_pixels=16 * 784))
    assert rows * columns <= 16 * 784


@pytest.mark.parametrize(
    "wrong", [{"fps": 0}, {"fps": -2.0}, {"fps": math.nan}, {"fps": math.inf}, {"max_frames": 0}, {"max_pixels": -1}]
)
def test_impossible_budgets_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        VideoBudget(**wrong)  # type: ignore[arg-type]


def test_an_image_budget_needs_pixels() -> None:
    with pytest.raises(UsageError, match="max_pixels is 0"):
        ImageBudget(max_pixels=0)


def test_threads_do_not_exceed_the_processors() -> None:
    assert 1 <= MediaLimits().decode_threads <= 8


@pytest.mark.parametrize("rate", [8, 10, 15, 24, 24_000 / 1001, 25, 30_000 / 1001, 60])
@pytest.mark.parametrize("ticks", [600, 1000, 12_288, 90_000])
def test_frame_counts_are_those_of_the_rate_however_times_are_rounded(rate: float, ticks: int) -> None:
    for total in range(2, 200):
        timeline = Timeline(np.round(np.arange(total) / rate * ticks) / ticks, rate)
        wanted = min(round(total / rate * 2), total)
        assert frame_count(timeline, VideoBudget(fps=2)) == max(1, wanted - wanted % 2 if wanted > 1 else wanted)


def test_a_header_that_lies_about_the_rate_is_not_believed() -> None:
    assert frame_count(Timeline(np.arange(100) / 25, rate=1000.0), VideoBudget(fps=2)) == 8
