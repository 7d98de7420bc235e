import numpy as np
import pytest
from reflectrt.calibration.ranges import METHODS, Method, input_range, input_scale

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((512, 64)).astype(np.float32)
SPIKED = NORMAL.copy()
SPIKED[3, 5] = 100.0


def reach(method: Method, scheme: str = "int8", **rows: np.ndarray) -> float:
    return input_range(method, scheme, rows, max(float(np.abs(x).max()) for x in rows.values()))  # type: ignore[arg-type]


def test_minmax_covers_everything() -> None:
    assert reach("minmax", visual=SPIKED) == 100.0


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_other_methods_cut_a_lone_spike(method: Method) -> None:
    assert 2 < reach(method, visual=SPIKED) < 90


def test_the_mean_square_error_is_least_where_mse_cuts() -> None:
    def error(most: float) -> float:
        scale = most / 127
        return float(np.square(np.clip(np.rint(SPIKED / scale), -127, 127) * scale - SPIKED).mean())

    found = reach("mse", visual=SPIKED)
    assert error(found) <= min(error(100.0), error(found * 1.2), error(found / 1.2))


@pytest.mark.parametrize("method", METHODS)
def test_a_source_with_few_rows_is_not_cut_for_the_sake_of_many(method: Method) -> None:
    hidden = 20 * NORMAL[:8]
    assert reach(method, visual=NORMAL, hidden=hidden) > 2 * reach(method, visual=NORMAL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_no_range_is_wider_than_what_was_seen_and_none_is_zero_of_zeros(method: Method, scheme: str) -> None:
    assert reach(method, scheme, text=NORMAL) <= np.abs(NORMAL).max()
    zeros = np.zeros((4, 4), np.float32)
    assert input_scale(reach(method, scheme, text=zeros), scheme) == 1.0


def test_scales_map_the_range_to_the_largest_number() -> None:
    assert input_scale(127.0, "int8") == 1.0
    assert input_scale(448.0, "fp8") == 1.0
