import numpy as np
import pytest
from exports import Exports
from reflectrt.calibration.alpha import given
from reflectrt.calibration.smoothing import folded, groups, smooth
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.quantize.fold import reader_factors

LAYER = "model.language_model.layers.0."
NORM, VALUE = f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.v_proj.weight"


@pytest.fixture
def checkpoint(exports: Exports) -> Checkpoint:
    return Checkpoint.open(exports.checkpoint())


def all_maxima(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: np.exp(random.normal(size=checkpoint.read(name).flatten(1).shape[1]))
        for group in groups(checkpoint)
        for name in group.readers
    } | {name: np.array([0.0, *[1.0] * 47]) for name in next(g for g in groups(checkpoint) if g.source == NORM).readers}


def weight(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read(name).flatten(1).float().numpy()


def test_factors_are_smoothquants(checkpoint: Checkpoint) -> None:
    maxima = all_maxima(checkpoint)
    folds = {
        fold.source: fold for fold in smooth(groups(checkpoint), maxima, lambda n: weight(checkpoint, n), given(0.3))
    }
    down = f"{LAYER}mlp.down_proj.weight"
    wanted = maxima[down] ** 0.3 / np.abs(weight(checkpoint, down)).max(axis=0) ** 0.7
    factors = np.array(folds[f"{LAYER}mlp.up_proj.weight"].factors)
    np.testing.assert_allclose(factors / factors[0], wanted / wanted[0], rtol=1e-5)


def test_a_channel_that_is_always_zero_stays(checkpoint: Checkpoint) -> None:
    folds = smooth(groups(checkpoint), all_maxima(checkpoint), lambda n: weight(checkpoint, n), given(0.5))
    (norm,) = (fold for fold in folds if fold.source == NORM)
    assert norm.factors[0] == 1.0
    assert min(norm.factors) > 0


def test_an_outlier_is_shared_between_activation_and_weight(checkpoint: Checkpoint) -> None:
    down = f"{LAYER}mlp.down_proj.weight"
    maxima = {down: np.ones(checkpoint.text.mlp)}
    maxima[down][7] = 400.0
    ones = lambda name: np.ones_like(weight(checkpoint, name))  # noqa: E731
    (fold,) = smooth(groups(checkpoint), maxima, ones, given(0.5))
    after = folded(maxima[down], down, [fold])
    assert after[7] / after[0] == pytest.approx(20.0, rel=1e-4)
    rows = reader_factors(fold)
    assert rows[7] / rows[0] == pytest.approx(20.0, rel=1e-4)


def test_heads_that_share_values_share_factors(checkpoint: Checkpoint) -> None:
    folds = smooth(groups(checkpoint), all_maxima(checkpoint), lambda n: weight(checkpoint, n), given(0.5))
    (values,) = (fold for fold in folds if fold.source == VALUE)
    rows = reader_factors(values).reshape(checkpoint.text.kv_heads, values.repeat, checkpoint.text.head_dim)
    assert values.repeat == checkpoint.text.heads // checkpoint.text.kv_heads == 3
    np.testing.assert_array_equal(rows[:, 0], rows[:, 2])


def test_groups_that_were_not_observed_are_left_alone(checkpoint: Checkpoint) -> None:
    assert smooth(groups(checkpoint), {}, lambda n: weight(checkpoint, n), given(0.5)) == []
