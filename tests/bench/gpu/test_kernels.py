"""What the step's kernels are compared with is what was stored; the page's figures are those that were measured."""

import json
from pathlib import Path

import pytest
import torch
from reflectrt.bench.gpu.kernels import KERNELS, store, table

RESULTS = Path(__file__).parents[3] / "bench/results"
STEPS = json.loads((RESULTS / "gpu_step_kernels.json").read_text())


@pytest.mark.parametrize(
    ("kind", "error"), [("bf16", 0.002), ("fp8", 0.04), ("int8", 0.01), ("int8-blocks", 0.01), ("int4", 0.15)]
)
def test_a_stored_matrix_means_nearly_what_was_drawn(kind: str, error: float) -> None:
    matrix = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    stored = store(matrix, kind)
    assert stored.meant.shape == matrix.shape
    assert 0 < float((stored.meant - matrix).norm() / matrix.norm()) < error


def test_eight_and_four_bits_are_stored_as_the_kernels_read_them() -> None:
    """Offset by half their range; of four bits the earlier number is in the lower half of a byte."""
    matrix = torch.linspace(-1, 1, 64).view(2, 32).repeat(1, 4)
    for kind, bits in (("int8", 8), ("int8-blocks", 8), ("int4", 4)):
        stored = store(matrix, kind)
        assert stored.scales is not None
        flat = stored.weight.flatten(1).int()
        numbers = flat if bits == 8 else torch.stack((flat & 15, flat >> 4), -1).flatten(1)
        scales = stored.scales.float().repeat_interleave(128 // stored.scales.shape[1], 1)
        assert torch.equal((numbers - (1 << bits - 1)) * scales, stored.meant)


def test_the_page_has_the_kernels_times() -> None:
    page = (RESULTS.parents[1] / "docs/cuda.md").read_text()
    for name in ("bf16", "fp8", "int8"):
        one = STEPS["steps"][f"{name}, float cache"]
        share = one["bytes"] / one["1_ms"] / 1e9 / STEPS["ceilings"]["copy_tbps"]
        row = f"| {name} | {one['1_ms']:.2f} ms | {share:.0%} | {one['5_ms']:.2f} ms |".replace("%", " %")
        assert row in page


def test_a_line_of_the_table_says_all_of_a_format() -> None:
    line = table(STEPS).splitlines()[0]
    assert line.startswith("bf16, float cache")
    assert all(f"{STEPS['steps']['bf16, float cache']['kernels_us'][name]:.1f}" in line for name in KERNELS)
