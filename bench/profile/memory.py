"""Peaks of memory by stage, from a round that is not timed, and what context would fit."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.clock import Clock
from ...runtime.engine import Engine
from ...runtime.memory import cache_bytes
from ...runtime.session import Model
from .media import open_medium
from .report import Memory
from .scenario import Workload, question_of, reserve

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # Linux, Documentation/filesystems/proc.rst: resets the peak resident set size


class PeakClock(Clock):
    """A clock that keeps the largest memory seen during each stage, in bytes."""

    def __init__(self, peaks: dict[str, int], device_free: dict[str, int], engine: Engine) -> None:
        super().__init__()
        self._peaks, self._device_free, self._engine = peaks, device_free, engine
        self._own = threading.get_ident()

    @contextmanager
    def stage(self, name: str, done: Callable[[], None] | None = None) -> Iterator[None]:
        """Keep the peak of a block; stages on other threads share the process's peak."""
        if threading.get_ident() == self._own:
            reset_peak()
        with super().stage(name, done):
            yield
        self._peaks[name] = max(self._peaks.get(name, 0), peak_bytes())
        if self._engine.device != "cpu":
            self._device_free[name] = min(self._device_free.get(name, 2**62), self._engine.free_bytes())


def reset_peak() -> bool:
    """Start a new peak; False where the system does not allow it (then peaks are those of the process so far)."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Largest resident size since the last reset."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident size now."""
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def measure_memory(model: Model, work: Workload) -> Memory:
    """Ask one cold question and look at memory stage by stage."""
    peaks: dict[str, int] = {}
    device_free: dict[str, int] = {}
    free_before, before = model.engine.free_bytes(), resident_bytes()
    watched = Model(model.bundle, model.engine, lambda: PeakClock(peaks, device_free, model.engine))
    medium = open_medium(watched, work.source)
    question = question_of(watched, medium.kind, work.question_tokens)
    session = watched.open(medium, reserve_tokens=reserve(watched, medium, question, work.steps))
    session.ask(question.text, question.options, steps=work.steps)
    facts, itemsize = model.manifest.model, model.engine.activation.itemsize
    tokens = session.capacity_tokens
    cache = cache_bytes(facts, tokens, itemsize)
    device_peaks = {name: free_before - free for name, free in device_free.items()}
    grown = max(device_peaks.values()) if device_peaks else max(peaks.values()) - before
    activations = max(0, grown - cache)
    room = max(0, free_before - activations) // cache_bytes(facts, 1, itemsize)
    return Memory(
        weight_bytes=weight_bytes(model),
        cache_bytes=cache,
        cache_tokens=tokens,
        activation_bytes=activations,
        process_bytes=before,
        peaks=peaks,
        device_peaks=device_peaks,
        free_bytes=free_before,
        context_fits=min(room, facts.max_context),
        context_limit=facts.max_context,
    )


def weight_bytes(model: Model) -> dict[str, int]:
    """Bytes of each graph's files: the graph itself is small beside its weights."""
    files = model.manifest.files
    return {
        name: sum(entry.size for file, entry in files.items() if file.startswith(graph.file))
        for name, graph in model.manifest.graphs.items()
    }
