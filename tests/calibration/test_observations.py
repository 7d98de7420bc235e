from pathlib import Path

import numpy as np
from reflectrt.calibration.observations import ROWS, Observations, Reservoir, load, save


def fill(reservoir: Reservoir, runs: list[int], random: np.random.Generator) -> None:
    """Runs of so many rows; a row's only number is its place among all rows."""
    first = 0
    for count in runs:
        chosen, keys = reservoir.draw(count, random)
        reservoir.add(count, keys, {"x": (first + chosen)[:, None].astype(np.float32)})
        first += count


def test_a_reservoir_keeps_every_row_while_there_are_few() -> None:
    reservoir = Reservoir()
    fill(reservoir, [3, 1, 5], np.random.default_rng(0))
    assert sorted(reservoir.rows["x"][:, 0]) == list(range(9))
    assert reservoir.seen == 9


def test_a_full_reservoir_is_an_even_sample_of_everything_seen() -> None:
    means = []
    for seed in range(20):
        reservoir = Reservoir()
        fill(reservoir, [700, 1, 2500, 4000], np.random.default_rng(seed))
        assert reservoir.rows["x"].shape == (ROWS, 1)
        means.append(reservoir.rows["x"].mean() / 7201)
    assert abs(np.mean(means) - 0.5) < 0.02  # standard error 0.003


def test_rows_of_two_tensors_stay_of_the_same_tokens() -> None:
    reservoir, random = Reservoir(), np.random.default_rng(0)
    for _ in range(5):
        chosen, keys = reservoir.draw(400, random)
        rows = random.random((len(chosen), 1))
        reservoir.add(400, keys, {"x": rows, "y": 2 * rows})
    np.testing.assert_array_equal(reservoir.rows["y"], 2 * reservoir.rows["x"])


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    observations = Observations()
    fill(observations.reservoir("decoder", "hidden"), [4], np.random.default_rng(0))
    observations.widen("x", np.array([1.0, 3.0]))
    observations.widen("x", np.array([2.0, 1.0]))
    save(observations, tmp_path / "seen.npz", done=np.array(7))
    found, more = load(tmp_path / "seen.npz")
    assert more["done"] == 7
    np.testing.assert_array_equal(found.maxima["x"], [2.0, 3.0])
    np.testing.assert_array_equal(found.rows("x")["hidden"], observations.rows("x")["hidden"])
    assert found.seen() == {"decoder from hidden": 4}
