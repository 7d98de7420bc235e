"""Each group of Linears gets the alpha that harms its outputs least."""

from __future__ import annotations

import numpy as np
import pytest
from reflectrt.calibration.alpha import ALPHAS, LeastError, given
from reflectrt.calibration.smoothing import smooth
from reflectrt.export.quantize.fold import reader_factors
from reflectrt.export.quantize.qdq import TYPES
from reflectrt.export.recipe import Fold

READER = "down.weight"
GROUP = Fold("up.weight", 0, (READER,), 64, 1, (1.0,) * 64)
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(48, 64)).astype(np.float32)


def inputs(outlier: float) -> np.ndarray:
    rows = RANDOM.normal(size=(300, 64)).astype(np.float32)
    rows[:, 5] *= outlier
    return rows


def search(rows: np.ndarray) -> LeastError:
    return LeastError(TYPES["int8"], {READER: np.abs(rows).max(axis=0)}, lambda _: {"text": rows})


def fold(rows: np.ndarray, choose: object) -> Fold:
    (found,) = smooth(iter([GROUP]), {READER: np.abs(rows).max(axis=0)}, lambda _: WEIGHT, choose)  # type: ignore[arg-type]
    return found


def rounded_error(rows: np.ndarray, fold: Fold) -> float:
    """By hand: the mean square of what int8 does to the outputs under a fold."""
    factors = reader_factors(fold)
    x, weight = rows / factors, WEIGHT.T * factors[:, None]
    step = np.abs(x).max() / 127
    scale = TYPES["int8"].scale(weight, 0)
    found = (np.rint(x / step) * step) @ (np.rint(weight / scale) * scale)
    return float(np.square(found - rows @ WEIGHT.T).mean())


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1000.0])
def test_no_alpha_harms_less_than_the_one_that_is_found(outlier: float) -> None:
    rows = inputs(outlier)[:256]
    found = rounded_error(rows, fold(rows, search(rows)))
    assert found == pytest.approx(min(rounded_error(rows, fold(rows, given(alpha))) for alpha in ALPHAS), rel=1e-4)


def test_the_choice_depends_on_the_outlier() -> None:
    plain, heavy = inputs(1.0), inputs(1000.0)
    chosen = {
        name: next(a for a in ALPHAS if fold(rows, given(a)) == fold(rows, search(rows)))
        for name, rows in (("plain", plain), ("heavy", heavy))
    }
    assert chosen["plain"] != chosen["heavy"]


def test_every_source_counts_alike() -> None:
    """A thousand visual rows do not drown ten of reflection."""
    visual, hidden = inputs(1.0), inputs(300.0)[:10]
    maxima = {READER: np.maximum(np.abs(visual).max(axis=0), np.abs(hidden).max(axis=0))}
    both = LeastError(TYPES["int8"], maxima, lambda _: {"visual": visual, "hidden": hidden})
    alone = [LeastError(TYPES["int8"], maxima, lambda _, rows=rows: {"text": rows}) for rows in (visual, hidden)]
    fold_at = GROUP
    assert both._error([WEIGHT], fold_at) == pytest.approx(sum(each._error([WEIGHT], fold_at) for each in alone))


def test_inputs_that_are_always_zero_have_no_error() -> None:
    rows = np.zeros((20, 64), np.float32)
    assert fold(rows, search(rows)).factors == (1.0,) * 64
