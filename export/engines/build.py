"""One ONNX graph -> one plan: parse, hold against the contract, compile, hold the result against it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.contract import Signature
from ...runtime.engines.tensorrt_library import Library
from ...runtime.errors import ExportError, ResourceError
from .check import check_network, check_report
from .flavour import configure, create_network, save_timings
from .journal import Journal, journal
from .onnx_file import read_graph
from .profiles import Profile, shapes
from .report import EngineReport, Memory, memory, report

Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, steps done and steps in all."""

OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "insufficient memory", "cannot allocate")


@dataclass(frozen=True)
class Request:
    """What to build from one graph."""

    graph: str
    file: Path
    signature: Signature
    activation: str
    capacity: int
    profiles: tuple[Profile, ...]
    architecture: str
    workspace_bytes: int | None = None
    """Scratch memory that kernels may ask for; None leaves it to the library (all of the device's)."""
    version_compatible: bool = False
    timing_cache: Path | None = None
    weight_streaming: bool = False


@dataclass(frozen=True)
class Built:
    """A plan, and what is in it."""

    plan: Any
    """A buffer of `size` bytes."""
    size: int
    seconds: float
    memory: Memory
    report: EngineReport | None


def build(library: Library, request: Request, progress: Progress | None = None) -> Built:
    """Compile a graph. Raises ExportError (the parser or the builder complains) and ResourceError (memory)."""
    trt, log = library.api, journal(library)
    log.clear()
    started = time.perf_counter()
    builder = trt.Builder(log)
    if builder is None:
        raise ExportError(f"{library.name} does not start: {_first(log)}; check the driver with `nvidia-smi`")
    network = create_network(library, builder)
    _parse(library, network, request, log)
    check_network(library, network, request.signature, request.activation, request.capacity)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    configure(library, config, request.architecture, request.version_compatible, request.timing_cache)
    if request.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    if progress is not None:
        config.progress_monitor = _monitor(library, progress)
    _add_profiles(builder, config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(request, log)
    _check_complaints(request.graph, log)
    save_timings(library, config, request.timing_cache)
    found = report(log.kept)
    if found is not None:
        check_report(found, request.signature, request.activation, request.capacity, request.profiles)
    return Built(plan, int(plan.nbytes), time.perf_counter() - started, memory(log.kept), found)


def _parse(library: Library, network: Any, request: Request, log: Journal) -> None:
    parser = library.api.OnnxParser(network, log)
    if not parser.parse(read_graph(request.file, request.capacity), str(request.file)):
        reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise ExportError(
            f"{library.name} {library.version} cannot read {request.file.name}: {'; '.join(reasons)[:300]}"
        )
    _check_complaints(request.graph, log)


def _check_complaints(graph: str, log: Journal) -> None:
    """An input that is read and then dropped gives a plan that is silently wrong: any warning stops the build."""
    if log.complaints:
        raise ExportError(f"TensorRT complains about {graph}: {_first(log)}; please report this")


def _add_profiles(builder: Any, config: Any, request: Request) -> None:
    for profile in request.profiles:
        made = builder.create_optimization_profile()
        for port in request.signature.inputs:
            if any(axis in profile for axis in port.axes):
                made.set_shape(port.name, *shapes(port, profile, request.capacity))
        if config.add_optimization_profile(made) < 0:
            raise ExportError(f"TensorRT refuses the profile {profile} of {request.graph}; please report this")


def _monitor(library: Library, progress: Progress) -> Any:
    base: Any = library.api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # untyped
        """Hands phases on; a build is never cancelled from here."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            del parent
            self.steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step, self.steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _failure(request: Request, log: Journal) -> ExportError | ResourceError:
    text = _first(log)
    if any(sign in " ".join(log.errors).lower() for sign in OUT_OF_MEMORY):
        return ResourceError(
            f"not enough memory to build {request.graph} ({text}); close other programs, add swap, "
            "or pass a smaller --capacity, --max-patches or --workspace"
        )
    return ExportError(f"TensorRT cannot build {request.graph} for {request.architecture}: {text}; please report this")


def _first(log: Journal) -> str:
    """The first thing that was complained about, on one line."""
    return " ".join((log.errors or log.complaints or ["no reason given"])[0].split())[:300]
