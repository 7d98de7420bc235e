"""What the GPU does at best: a large matrix product, and a large copy, in the run that quotes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ceilings:
    """TFLOP/s of bf16 products of 8192 x 8192 random matrices; TB/s of a copy, bytes read and written counted."""

    matmul_tflops: float
    copy_tbps: float


def seconds(work: Callable[[], object], warm_up: int = 2, runs: int = 7) -> float:
    """Median seconds of `work` by the device's own clock."""
    times = []
    for index in range(warm_up + runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if index >= warm_up:
            times.append(start.elapsed_time(end) / 1e3)
    return float(median(times))


def measure_ceilings() -> Ceilings:
    """Measure both on the current GPU."""
    side, size = 8192, 2**32
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = seconds(lambda: torch.mm(a, b, out=out), warm_up=3, runs=10)
    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    return Ceilings(2 * side**3 / product / 1e12, 2 * size / copy / 1e12)
