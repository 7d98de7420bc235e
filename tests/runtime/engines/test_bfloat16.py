import numpy as np
from reflectrt.runtime.engines import bfloat16


def test_every_finite_bfloat16_comes_back() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    values = bfloat16.to_float32(halves)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(bfloat16.from_float32(values)[finite], halves[finite])
    assert np.isnan(bfloat16.to_float32(bfloat16.from_float32(values[~finite]))).all()


def test_rounding_is_to_the_nearest_and_ties_go_to_even() -> None:
    one, step = np.float32(1), np.float32(2**-7)
    values = np.array([one + step * n / 4 for n in range(9)], np.float32)
    wanted = [1, 1, 1, 1 + step, 1 + step, 1 + step, 1 + 2 * step, 1 + 2 * step, 1 + 2 * step]
    np.testing.assert_array_equal(bfloat16.to_float32(bfloat16.from_float32(values)), np.array(wanted, np.float32))


def test_it_is_torch_s_rounding() -> None:
    import torch

    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    found = bfloat16.to_float32(bfloat16.from_float32(values))
    np.testing.assert_array_equal(found, torch.from_numpy(values).bfloat16().float().numpy())
