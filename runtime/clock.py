"""Seconds spent in named stages, by the monotonic clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

STAGES = ("read", "vision", "prefill", "reflect", "decode")


class Clock:
    """Adds up stage times; stages may repeat, and those on other threads may overlap."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._start = perf_counter()

    @contextmanager
    def stage(self, name: str, done: Callable[[], None] | None = None) -> Iterator[None]:
        """Time a block as part of the stage `name`; `done` waits for what it left running."""
        start = perf_counter()
        try:
            yield
            if done:
                done()
        finally:
            self._seconds[name] += perf_counter() - start

    def timings(self) -> dict[str, float]:
        """Seconds of each stage, and `total`: the wall time since the clock was made."""
        return {**self._seconds, "total": perf_counter() - self._start}
