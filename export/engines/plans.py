"""Build a bundle's graphs into plans, and record them in its manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...runtime import contract
from ...runtime import manifest as manifests
from ...runtime.bundle import Bundle
from ...runtime.cache import BUCKET
from ...runtime.engines.tensorrt_library import Library, load_library
from ...runtime.errors import CompatibilityError, ResourceError, UsageError
from ...runtime.manifest import FileEntry, Manifest
from ...runtime.memory import available_bytes
from ...runtime.plans import EnginePlan
from .build import Built, Progress, Request, build
from .flavour import RTX, check_architecture, cuda_version
from .precision import check_precision, quantized_weights
from .profiles import Limits, profiles

BUILD_MEMORY = 3.3
"""Host bytes that building takes for each byte of weights: 3.17 measured with TensorRT-RTX 1.7 (1.48 GB for 466 MB)."""
TARGETS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class BuildOptions:
    """What to build plans for; `capacities` empty is the bundle's whole context."""

    architectures: tuple[str, ...]
    capacities: tuple[int, ...] = ()
    max_patches: int = Limits.patches
    chunk_tokens: int = Limits.chunk_tokens
    workspace_bytes: int | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None
    weight_streaming: bool = False
    """Let weights that do not fit the device stay in host memory."""


class BuildProgress(Protocol):
    """Where a build reports how far it is."""

    def stage(self, name: str) -> None:
        """A new plan begins."""

    def phase(self, name: str, done: int, total: int) -> None:
        """So many steps of a phase of it are done."""


def build_plans(bundle: Bundle, options: BuildOptions, progress: BuildProgress) -> Manifest:
    """Compile every graph for every architecture (the decoder once for each capacity) and add the plans to the bundle.

    The manifest is replaced once all plans are there; plans of the same graph, architecture, version and capacity are
    replaced. Raises CompatibilityError, ResourceError, UsageError and ExportError.
    """
    manifest = bundle.manifest
    if manifest.target not in TARGETS:
        raise CompatibilityError(
            f"{bundle.path} was exported for {manifest.target}; export with --target {' or '.join(TARGETS)}"
        )
    library = load_library(manifest.target)  # type: ignore[arg-type]  # one of TARGETS
    schemes = set(quantized_weights(manifest, None).values())
    for architecture in options.architectures:
        check_architecture(library, architecture, schemes)
    requests = [
        request for architecture in options.architectures for request in _requests(bundle, options, architecture)
    ]
    _check_room(bundle, requests)
    added: dict[str, tuple[EnginePlan, FileEntry]] = {}
    for request in requests:
        progress.stage(f"{request.graph} for {request.architecture}")
        plan, entry = _build_one(bundle, library, request, progress.phase)
        added[plan.file] = (plan, entry)
    kept = tuple(plan for plan in manifest.plans if plan.file not in added)
    files = manifest.files | {name: entry for name, (_, entry) in added.items()}
    updated = replace(
        manifest,
        version=(manifests.FORMAT_MAJOR, manifests.FORMAT_MINOR),
        plans=(*kept, *(plan for plan, _ in added.values())),
        files=files,
    )
    _write(bundle.path / manifests.FILE_NAME, manifests.dump(updated).encode())
    return updated


def _requests(bundle: Bundle, options: BuildOptions, architecture: str) -> Iterator[Request]:
    manifest = bundle.manifest
    context = manifest.model.max_context
    capacities = options.capacities or (context,)
    if max(capacities) > context:
        raise UsageError(
            f"--capacity {max(capacities)} is more than the bundle's context, {context}; pass that or less"
        )
    if min(capacities) < BUCKET:
        raise UsageError(f"--capacity {min(capacities)} has no room for media and a question; pass {BUCKET} or more")
    smallest = max(manifest.image.min_pixels, manifest.video.min_pixels) // manifest.model.patch**2
    if options.max_patches < smallest:
        raise UsageError(
            f"--max-patches {options.max_patches} is less than the smallest frame has, {smallest}; pass that or more"
        )
    for name, entry in manifest.graphs.items():
        for capacity in capacities if name == contract.DECODER else (max(capacities),):
            limits = Limits(capacity, options.chunk_tokens, options.max_patches)
            yield Request(
                graph=name,
                file=bundle.file(entry.file),
                signature=entry.signature(),
                activation=manifest.activation,
                capacity=capacity if name == contract.DECODER else 0,
                profiles=profiles(name, manifest.model, limits),
                architecture=architecture,
                workspace_bytes=options.workspace_bytes,
                version_compatible=options.version_compatible,
                timing_cache=options.timing_cache,
                weight_streaming=options.weight_streaming,
            )


def _build_one(bundle: Bundle, library: Library, request: Request, progress: Progress) -> tuple[EnginePlan, FileEntry]:
    built = build(library, request, progress)
    weights = quantized_weights(bundle.manifest, request.graph)
    if built.report is not None:
        check_precision(built.report, request.graph, weights, request.activation)
    plan = _plan(library, request, built)
    return plan, _write(bundle.path / plan.file, built.plan)


def _plan(library: Library, request: Request, built: Built) -> EnginePlan:
    rows = f".{request.capacity}" if request.capacity else ""
    short = "rtx" if library.name == RTX else "trt"
    return EnginePlan(
        graph=request.graph,
        file=f"{request.graph}{rows}.{request.architecture.lower()}.{short}-{library.version}.plan",
        library=library.name,
        version=library.version,
        version_compatible=request.version_compatible,
        architecture=request.architecture,
        cuda=cuda_version(library),
        capacity=request.capacity,
        profiles=request.profiles,
        weight_bytes=built.memory.weights,
        scratch_bytes=built.memory.scratch,
        weight_streaming=request.weight_streaming,
    )


def _check_room(bundle: Bundle, requests: list[Request]) -> None:
    """Memory for the largest graph, disk for all plans; both are far below what a failed build has cost."""
    sizes = [_weight_bytes(bundle, request.graph) for request in requests]
    largest = requests[sizes.index(max(sizes))]
    need, free = int(BUILD_MEMORY * max(sizes)), available_bytes()
    if need > free:
        raise ResourceError(
            f"building {largest.graph} takes {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; close other "
            "programs, add swap, build on a larger machine, or export with --precision int4"
        )
    disk, space = sum(sizes), shutil.disk_usage(bundle.path).free
    if disk > space:
        raise ResourceError(f"the plans need {disk / 1e9:.1f} GB of disk, {space / 1e9:.1f} GB are free; free some")


def _weight_bytes(bundle: Bundle, graph: str) -> int:
    """Bytes of a graph's weights: its own file, or the one that it shares."""
    own = bundle.manifest.files.get(f"{graph}.onnx.data")
    if own is None and graph == contract.HEAD:  # tied: the head reads the embedding's table
        own = bundle.manifest.files.get(f"{contract.EMBED}.onnx.data")
    return own.size if own else 0


def _write(file: Path, data: Any) -> FileEntry:
    """Write a file so that it is whole or not there; its size and hash."""
    view = memoryview(data)
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(view)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise ResourceError(f"{file} cannot be written ({error.strerror}); free some space or check rights") from None
    finally:
        partial.unlink(missing_ok=True)
    return FileEntry(view.nbytes, hashlib.sha256(view).hexdigest())
