"""An engine and a clock that remember what ran when. They wrap the runtime's own, which run unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter

import numpy as np

from ...runtime.clock import Clock
from ...runtime.contract import DECODER, FLOAT
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


class Log:
    """What happened since the last `take`. Appending to a list is atomic, so threads may share it.

    Entries are plain tuples until they are taken: a span made while the clock runs would cost more than the clock.
    """

    def __init__(self) -> None:
        self.stages: list[tuple[str, float, float, int]] = []
        self.graphs: list[tuple[RecordingGraph, float, float, int, tuple[tuple[int, ...], ...], int]] = []

    def take(self) -> Taken:
        """Everything so far; the log is empty afterwards."""
        taken = Taken(
            tuple(Span(*entry) for entry in self.stages),
            tuple(
                GraphRun(graph.name, start, end, thread, graph.named(shapes), past)
                for graph, start, end, thread, shapes, past in self.graphs
            ),
        )
        self.stages.clear()
        self.graphs.clear()
        return taken


@dataclass(frozen=True)
class Taken:
    """Stages and graph runs in the order they ended."""

    stages: tuple[Span, ...]
    graphs: tuple[GraphRun, ...]


class SpanClock(Clock):
    """The runtime's clock, with a span for every stage."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    @contextmanager
    def stage(self, name: str, done: Callable[[], None] | None = None) -> Iterator[None]:
        """Time a block as part of the stage `name`, and keep when it ran."""
        start = perf_counter()
        try:
            yield
            if done:
                done()
        finally:
            end = perf_counter()
            self._seconds[name] += end - start
            self._log.stages.append((name, start, end, get_ident()))


class RecordingEngine:
    """An engine whose graph runs are logged; everything else goes straight through."""

    def __init__(self, engine: Engine, log: Log) -> None:
        self.wrapped, self._log = engine, log
        self.device, self.activation = engine.device, engine.activation
        self.chunk_tokens, self.vision_patches = engine.chunk_tokens, engine.vision_patches
        self.cache_capacities = engine.cache_capacities
        self.text_apart = engine.text_apart
        self._past = 0
        self._graphs: dict[str, RecordingGraph] = {}

    def graph(self, name: str) -> RecordingGraph:
        """A graph by its name in the contract."""
        if name not in self._graphs:
            past = (lambda: self._past) if name == DECODER else (lambda: 0)
            self._graphs[name] = RecordingGraph(self.wrapped.graph(name), name, (past, self.wrapped.wait), self._log)
        return self._graphs[name]

    def empty(self, shape: Sequence[int], dtype: str = FLOAT) -> Buffer:
        """As the wrapped engine's."""
        return self.wrapped.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str = FLOAT) -> Buffer:
        """As the wrapped engine's."""
        return self.wrapped.zeros(shape, dtype)

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

    def wait(self) -> None:
        """As the wrapped engine's."""
        self.wrapped.wait()

    def free_bytes(self) -> int:
        """As the wrapped engine's."""
        return self.wrapped.free_bytes()


class RecordingGraph:
    """A graph whose runs are logged with their input shapes."""

    def __init__(self, graph: Graph, name: str, engine: tuple[Callable[[], int], Callable[[], None]], log: Log) -> None:
        """`engine` says how many rows the cache has, and waits for a run."""
        self._graph, self.name, self._log = graph, name, log
        self._past, self._wait = engine
        self._watched: tuple[str, ...] = ()
        self._caches: tuple[str, ...] = ()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run, wait for it, and log it."""
        start = perf_counter()
        self._graph.run(inputs, outputs)
        self._wait()
        end = perf_counter()
        if not self._watched:
            # All caches have one shape by the contract: looking at two inputs a layer would cost more than the rest.
            self._caches = tuple(name for name in inputs if "_cache." in name)
            self._watched = tuple(name for name in inputs if name not in self._caches[1:])
        shapes = tuple([inputs[name].shape for name in self._watched])
        self._log.graphs.append((self, start, end, get_ident(), shapes, self._past()))

    def named(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The shapes of all inputs by name, from those that were looked at."""
        known = dict(zip(self._watched, shapes, strict=True))
        return tuple(known.items()) + tuple((name, known[self._caches[0]]) for name in self._caches[1:])


def seconds_per_span(count: int = 2000) -> float:
    """What recording one stage or graph run costs, in seconds (mean over `count` empty ones of both)."""
    log, graph = Log(), _NoGraph()
    recorded = RecordingGraph(graph, "empty", (lambda: 0, lambda: None), log)
    extra_s = _cost(recorded, SpanClock(log), count) - _cost(graph, Clock(), count)
    return max(0.0, extra_s) / (2 * count)


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
