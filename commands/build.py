"""`reflectrt build`: TensorRT plans from a bundle's graphs, on the device or ahead of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..export.engines.plans import TARGETS, BuildOptions, build_plans
from ..progress import Bar
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.engines.cuda import Gpu
from ..runtime.errors import CompatibilityError, UsageError
from .arguments import add_bundle, command, positive


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "build", run, "compile a bundle's graphs with TensorRT", "reflectrt build bundle --capacity 8192"
    )
    add_bundle(parser)
    parser.add_argument(
        "--architecture",
        metavar="SM",
        action="append",
        default=[],
        help="compute capability to build for, e.g. SM86; may be repeated (default: the GPU that is there; "
        "TensorRT builds for no other, TensorRT-RTX for any)",
    )
    parser.add_argument(
        "--capacity",
        metavar="N",
        type=positive,
        action="append",
        default=[],
        help="tokens of the KV cache, which cost and memory follow; may be repeated, each is a decoder plan with "
        "weights of its own (default: the bundle's --max-context)",
    )
    parser.add_argument(
        "--max-patches",
        metavar="N",
        type=positive,
        default=16_384,
        help="14 x 14 px patches of the largest image (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk", metavar="N", type=positive, default=1024, help="tokens of one prefill run (default: %(default)s)"
    )
    parser.add_argument("--workspace", metavar="MB", type=positive, help="scratch memory of kernels (default: all)")
    parser.add_argument(
        "--version-compatible", action="store_true", help="plans for later TensorRT versions of the same major as well"
    )
    parser.add_argument(
        "--weight-streaming",
        action="store_true",
        help="let weights that do not fit the GPU stay in host memory, to be copied in every run (slow; default: off)",
    )
    parser.add_argument("--timing-cache", metavar="FILE", type=Path, help="kernel timings to read and to keep")


def run(arguments: argparse.Namespace) -> int:
    """Build as the parsed options say, with progress on stderr."""
    bundle = open_bundle(arguments.bundle)
    options = BuildOptions(
        architectures=_architectures(bundle, tuple(arguments.architecture)),
        capacities=tuple(arguments.capacity),
        max_patches=arguments.max_patches,
        chunk_tokens=arguments.chunk,
        workspace_bytes=arguments.workspace * 10**6 if arguments.workspace else None,
        version_compatible=arguments.version_compatible,
        timing_cache=arguments.timing_cache,
        weight_streaming=arguments.weight_streaming,
    )
    progress = BuildProgress()
    try:
        manifest = build_plans(bundle, options, progress)
    finally:
        progress.clear()
    for plan in manifest.plans:
        size = manifest.files[plan.file].size
        print(f"{plan.file}: {size / 1e6:.1f} MB", file=sys.stderr)
    return 0


def _architectures(bundle: Bundle, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What to build for: TensorRT-RTX builds for any GPU, TensorRT for the one that is there."""
    target = bundle.manifest.target
    if target not in TARGETS or (target == "tensorrt-rtx" and asked):  # other targets are refused by `build_plans`
        return asked
    local = _local_architecture(bundle)
    if asked not in ((), (local,)):
        raise UsageError(f"TensorRT builds for the GPU that is there, {local}; drop --architecture")
    return (local,)


def _local_architecture(bundle: Bundle) -> str:
    """The compute capability of the GPU that is there."""
    try:
        major, minor = Gpu().facts().capability
    except CompatibilityError as error:
        if bundle.manifest.target == "tensorrt-rtx":
            raise UsageError("there is no GPU here to build for; pass --architecture, e.g. SM86") from None
        raise CompatibilityError(f"TensorRT builds on the device itself: {error}") from None
    return f"SM{major}{minor}"


class BuildProgress:
    """Plans as lines, their phases as bars."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def stage(self, name: str) -> None:
        """A new plan begins."""
        self.clear()
        print(f"{name} ...", file=sys.stderr, flush=True)

    def phase(self, name: str, done: int, total: int) -> None:
        """So many steps of a phase of it are done."""
        del name  # phases nest, and their names say nothing to a user
        self._bar = self._bar or Bar("building", sys.stderr)
        self._bar.update(done, total)

    def clear(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.clear()
        self._bar = None
