"""An engine and a clock that remember what ran when. They wrap the runtime's own, which run unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from time import perf_counter

import numpy as np

from ...runtime.clock import Clock
from ...runtime.contract import DECODER
from ...runtime.engine import Array, Buffer, Engine, Graph


@dataclass(frozen=True)
class Span:
    """A stage that ran, on one thread; times in seconds of `perf_counter`."""

    name: str
    start_s: float
    end_s: float
    thread: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class GraphRun(Span):
    """A graph that ran; `past` is the rows that the KV cache held before (decoder only)."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    past: int


@dataclass
class Log:
    """What happened since the last `take`. Appending to a list is atomic, so threads may share it."""

    stages: list[Span] = field(default_factory=list)
    graphs: list[GraphRun] = field(default_factory=list)

    def take(self) -> Log:
        """Everything so far; the log is empty afterwards."""
        taken = Log(self.stages[:], self.graphs[:])
        self.stages.clear()
        self.graphs.clear()
        return taken


class SpanClock(Clock):
    """The runtime's clock, with a span for every stage."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block as part of the stage `name`, and keep when it ran."""
        start = perf_counter()
        try:
            with super().stage(name):
                yield
        finally:
            self._log.stages.append(Span(name, start, perf_counter(), get_ident()))


class RecordingEngine:
    """An engine whose graph runs are logged; everything else goes straight through."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self.wrapped, self._log = engine, log
        self.device, self.activation = engine.device, engine.activation
        self._past = 0

    def graph(self, name: str) -> RecordingGraph:
        """A graph by its name in the contract."""
        return RecordingGraph(self.wrapped.graph(name), name, lambda: self._past if name == DECODER else 0, self._log)

    def empty(self, shape: Sequence[int]) -> Buffer:
        """As the wrapped engine's."""
        return self.wrapped.empty(shape)

    def upload(self, array: Array) -> Buffer:
        """As the wrapped engine's. The one int64 [1] that the runtime uploads is the decoder's `past_length`."""
        if array.shape == (1,) and array.dtype == np.int64:
            self._past = int(array[0])
        return self.wrapped.upload(array)

    def download(self, buffer: Buffer) -> Array:
        """As the wrapped engine's."""
        return self.wrapped.download(buffer)

    def copy(self, source: Buffer, target: Buffer) -> None:
        """As the wrapped engine's."""
        self.wrapped.copy(source, target)

    def free_bytes(self) -> int:
        """As the wrapped engine's."""
        return self.wrapped.free_bytes()


class RecordingGraph:
    """A graph whose runs are logged with their input shapes."""

    def __init__(self, graph: Graph, name: str, past: Callable[[], int], log: Log) -> None:
        self._graph, self._name, self._past, self._log = graph, name, past, log

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run, and log it. On a device the run must be complete when it returns, as the runtime's are."""
        start = perf_counter()
        self._graph.run(inputs, outputs)
        end = perf_counter()
        shapes = tuple((name, buffer.shape) for name, buffer in inputs.items())
        past = self._past()
        self._log.graphs.append(GraphRun(self._name, start, end, get_ident(), shapes, past))


def seconds_per_span(count: int = 2000) -> float:
    """What recording one stage and one graph run costs, in seconds (mean over `count` empty ones)."""
    log, graph = Log(), _NoGraph()
    recorded = RecordingGraph(graph, "empty", lambda: 0, log)
    return max(0.0, _cost(recorded, SpanClock(log), count) - _cost(graph, Clock(), count)) / count


def _cost(graph: Graph, clock: Clock, count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        with clock.stage("decode"):
            graph.run({}, {})
    return perf_counter() - start


class _NoGraph:
    """A graph that does nothing."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Do nothing."""
