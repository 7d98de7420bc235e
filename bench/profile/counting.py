"""Work of a stage: that of every graph run inside it, against the ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np

from ...runtime.bundle import Bundle
from .graph import Graph, read
from .recorder import GraphRun
from .report import Ceilings, StageWork
from .stages import Sample
from .work import Work, count

FAR_SHARE = 0.25
"""Below a quarter of both ceilings neither bounds a stage: fixed costs, small shapes or the operators themselves do."""


class Counter:
    """Counts graph runs of one bundle; a graph is read once, and equal runs are counted once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._graphs: dict[str, Graph] = {}
        self._known: dict[object, Work] = {}
        self.unknown: set[str] = set()
        """Operators without a rule: their work is missing."""

    def of(self, runs: Iterable[GraphRun]) -> Work:
        """Work of these runs together."""
        return sum((self._one(run) for run in runs), Work())

    def _one(self, run: GraphRun) -> Work:
        key = run.name, run.shapes, run.past
        if key not in self._known:
            self._known[key], unknown = count(self._graph(run.name), dict(run.shapes), run.past)
            self.unknown |= unknown
        return self._known[key]

    def _graph(self, name: str) -> Graph:
        if name not in self._graphs:
            entry = self._bundle.manifest.graphs[name]
            bound = {weight.name for weight in entry.weights}
            self._graphs[name] = read(self._bundle.file(entry.file), bound)
        return self._graphs[name]


def stage_work(counter: Counter, measured: Sequence[Sample], ceilings: Ceilings | None) -> StageWork | None:
    """Work of the measurement nearest to the median, at the median's time; None for a stage that runs no graph."""
    median_s = float(np.median([sample.seconds for sample in measured]))
    typical = min(measured, key=lambda sample: abs(sample.seconds - median_s))
    if not typical.graphs or median_s <= 0:
        return None
    work = counter.of(typical.graphs)
    compute = bandwidth = None
    if ceilings:
        integer_s = work.integer_ops / ceilings.integer_ops_per_s if ceilings.integer_ops_per_s else 0.0
        ideal_s = work.float_ops / ceilings.float_ops_per_s + integer_s
        compute, bandwidth = ideal_s / median_s, work.bytes / ceilings.bytes_per_s / median_s
    return StageWork(
        **asdict(work),
        ops_per_s=work.ops / median_s,
        bytes_per_s=work.bytes / median_s,
        compute_share=compute,
        bandwidth_share=bandwidth,
        bound=bound(compute, bandwidth),
    )


def bound(compute: float | None, bandwidth: float | None) -> str | None:
    """Which ceiling a stage runs into, from its shares of both."""
    if compute is None or bandwidth is None:
        return None
    if max(compute, bandwidth) < FAR_SHARE:
        return "neither"
    return "compute" if compute >= bandwidth else "memory"
