"""The steps of a run on a device, and what came of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...runtime.errors import ReflectRTError

Figures = Mapping[str, object]


@dataclass(frozen=True)
class StepResult:
    """A step: done with figures, failed with a reason, or not reached because one before it failed."""

    name: str
    status: Literal["done", "failed", "not reached"]
    seconds: float = 0.0
    reason: str = ""
    figures: Figures = field(default_factory=dict)


def run_steps(
    steps: Mapping[str, Callable[[], Figures]], announce: Callable[[str], None] = lambda _: None
) -> list[StepResult]:
    """Run steps in order; after one that fails the others are not reached."""
    results: list[StepResult] = []
    for name, run in steps.items():
        if results and results[-1].status != "done":
            results.append(StepResult(name, "not reached"))
            continue
        announce(name)
        started = time.perf_counter()
        try:
            figures = run()
        except ReflectRTError as error:
            results.append(StepResult(name, "failed", time.perf_counter() - started, str(error)))
        else:
            results.append(StepResult(name, "done", time.perf_counter() - started, "", figures))
    return results
