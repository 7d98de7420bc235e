import ml_dtypes
import numpy as np
import pytest
from reflectrt.export.quantize.rounding import Grid, as_stored, blocks_of, fit_scales, round_weight

RANDOM = np.random.default_rng(0)
SHAPES = [(64, 256), (3, 100)]  # the second does not divide into blocks


def error(weight: np.ndarray, scales: np.ndarray, bits: int, block: int) -> float:
    numbers = blocks_of(round_weight(weight, scales, bits, block).astype(np.float32), block)
    return float(np.linalg.norm(numbers * scales[..., None] - blocks_of(weight, block)) / np.linalg.norm(weight))


def plain_scales(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    return np.abs(blocks_of(weight, block)).max(axis=2) / Grid(bits).highest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("block", "gain"), [(32, 0.94), (128, 0.92)])
def test_four_bits_lose_less_than_plain_rounding(shape: tuple[int, int], block: int, gain: float) -> None:
    weight = RANDOM.standard_normal(shape).astype(np.float32)
    plain = error(weight, plain_scales(weight, 4, block), 4, block)
    assert error(weight, fit_scales(weight, 4, block), 4, block) < gain * plain


@pytest.mark.parametrize("bits", [4, 8])
def test_no_block_loses_more_than_with_plain_rounding(bits: int) -> None:
    for weight in RANDOM.standard_t(3, (40, 1, 32)).astype(np.float32):
        found = error(weight, fit_scales(weight, bits, 32), bits, 32)
        assert found <= error(weight, plain_scales(weight, bits, 32), bits, 32) * 1.0001


def test_weights_that_the_grid_holds_come_back_exactly() -> None:
    weight = RANDOM.integers(-7, 8, (5, 64)).astype(np.float32)
    weight[:, ::32] = 7
    assert error(weight, fit_scales(weight, 4, 32), 4, 32) < 1e-6


def test_important_inputs_lose_less() -> None:
    weight = RANDOM.standard_normal((200, 32)).astype(np.float32)
    importance = np.where(np.arange(32) < 4, 100.0, 1.0)

    def loss(scales: np.ndarray) -> float:
        difference = round_weight(weight, scales, 4, 32) * scales - weight
        return float((importance * difference**2).sum())

    assert loss(fit_scales(weight, 4, 32, importance)) < 0.8 * loss(fit_scales(weight, 4, 32))


def test_zeros_stay_zeros_and_scales_positive() -> None:
    weight = np.zeros((2, 64), np.float32)
    scales = fit_scales(weight, 4, 32)
    assert (scales > 0).all() and not round_weight(weight, scales, 4, 32).any()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)])
def test_a_scale_that_its_type_cannot_hold_is_the_least_it_can(dtype: np.dtype[np.generic]) -> None:
    """Rows of a head that was padded are nearly zero, and float16 ends at 6e-8; by 0 they would be no numbers."""
    scales = np.array([1e-9, 3e-5, 1.0], np.float32)
    stored = as_stored(scales, dtype)
    assert stored.dtype == dtype and (stored > 0).all()
    assert stored[1:].astype(float) == pytest.approx(scales[1:], rel=0.01)
