import numpy as np
import pytest
from reflectrt.bench import reference_inputs
from reflectrt.bench.synthetic import random_medium
from reflectrt.export.facts import VisionFacts
from reflectrt.runtime.positions import position_after, text_positions, visual_positions

GRIDS = [(1, 4, 6), (3, 4, 4), (1, 2, 2), (5, 6, 2), (40, 4, 6), (2, 20, 34), (256, 12, 24)]


def test_text_counts_on_all_axes_alike() -> None:
    assert text_positions(5, 3).tolist() == [[5, 6, 7]] * 3


def test_an_image_of_two_rows_and_three_columns_by_hand() -> None:
    assert visual_positions(7, (1, 4, 6), 2, 0.0).tolist() == [
        [7, 7, 7, 7, 7, 7],
        [7, 7, 7, 8, 8, 8],
        [7, 8, 9, 7, 8, 9],
    ]
    assert position_after(7, (1, 4, 6), 2, 0.0) == 10


def test_a_video_of_three_grids_by_hand() -> None:
    # One second a grid and two positions a second: time goes 0, 2, 4, so that text goes on at 5.
    assert visual_positions(10, (3, 2, 4), 2, 2.0).tolist() == [
        [10, 10, 12, 12, 14, 14],
        [10, 10, 10, 10, 10, 10],
        [10, 11, 10, 11, 10, 11],
    ]
    assert position_after(10, (3, 2, 4), 2, 2.0) == 15


def test_fractions_of_a_position_are_cut() -> None:
    assert visual_positions(0, (4, 2, 2), 2, 0.7)[0].tolist() == [0, 0, 1, 2]
    assert position_after(0, (4, 2, 2), 2, 0.7) == 3


def test_text_after_a_long_video_goes_on_behind_its_last_grid() -> None:
    # transformers 5.17 would go on at 12, in the middle of the frames.
    assert position_after(0, (256, 12, 24), 2, 2.0) == 511


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("step", [0.0, 0.5, 1.0, 2.0, 2 / 3, 8.34])
def test_text_goes_on_at_the_maximum_over_all_axes_plus_one(grid: tuple[int, int, int], step: float) -> None:
    assert position_after(9, grid, 2, step) == visual_positions(9, grid, 2, step).max() + 1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("step", [1.0, 2 / 3, 4.17])
def test_a_segment_in_chunks_is_the_segment(grid: tuple[int, int, int], step: float) -> None:
    _, height, width = grid
    starts = range(0, grid[0], 3)
    chunks = [visual_positions(4, (min(3, grid[0] - i), height, width), 2, step, i) for i in starts]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), visual_positions(4, grid, 2, step))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_positions_are_the_reference_s(grid: tuple[int, int, int], kind: str) -> None:
    facts = VisionFacts(3, 64, 4, 100, 14, 2, 2, 112, (1,), 48, 3, tokens_per_second=2.0)
    medium = random_medium(kind, grid, seed=0, patch_values=1)
    step = 0.0 if kind == "image" else 2.0
    theirs = reference_inputs.visual_positions(11, medium, facts).numpy()
    np.testing.assert_array_equal(visual_positions(11, grid, 2, step), theirs)
    np.testing.assert_array_equal(text_positions(3, 4), reference_inputs.text_positions(3, 4).numpy())
