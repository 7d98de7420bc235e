import numpy as np
import pytest
from reflectrt.runtime.errors import UsageError
from reflectrt.runtime.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draws(sampling: Sampling, count: int = 2000, logits: np.ndarray = LOGITS) -> np.ndarray:
    sampler = Sampler(sampling)
    return np.array([sampler.pick(logits) for _ in range(count)])


def test_greedy_takes_the_largest_and_of_equals_the_first() -> None:
    sampler = Sampler(Sampling())
    assert sampler.pick(np.array([0.0, 3.0, 1.0], np.float32)) == 1
    assert sampler.pick(np.array([1.0, 3.0, 3.0], np.float32)) == 1


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    first, again, other = (draws(Sampling(1.0, seed=seed), 50) for seed in (3, 3, 4))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_frequencies_are_the_probabilities() -> None:
    shares = np.bincount(draws(Sampling(1.0)), minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.04)


def test_temperature_sharpens_and_flattens() -> None:
    cold, hot = (np.mean(draws(Sampling(temperature)) == 0) for temperature in (0.3, 5.0))
    assert cold > 0.8
    assert hot < 0.4


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {0}), (0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(draws(Sampling(1.0, top_p)).tolist()) == kept


def test_ruled_out_tokens_never_come() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    assert set(draws(Sampling(10.0), 200, logits).tolist()) == {1, 3}


def test_large_logits_and_tiny_temperatures_stay_finite() -> None:
    logits = np.array([3e4, -3e4, 2.9e4], np.float32)
    for temperature in (1e-3, 1e-320):
        assert set(draws(Sampling(temperature), 20, logits).tolist()) == {0}


NO_NUMBER = float("nan")


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": -0.1}, {"temperature": NO_NUMBER}, {"temperature": float("inf")}),
        *({"top_p": 0.0}, {"top_p": 1.1}, {"top_p": NO_NUMBER}, {"seed": -1}),
    ],
    ids=str,
)
def test_senseless_settings_are_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} is "):
        Sampling(**values)  # type: ignore[arg-type]
