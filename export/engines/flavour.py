"""Where building with TensorRT and with TensorRT-RTX differs: all of it is here.

                     TensorRT                              TensorRT-RTX
architecture         the GPU that is there                 any, named; no GPU needed
kernels              timed while building: timing cache    chosen on the device at first use
other versions       version-compatible plans              never
FP8                  from compute capability 8.9 on        the same
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from ...runtime.engines.tensorrt_library import Library
from ...runtime.errors import CompatibilityError, ExportError

FP8_SINCE = 89
"""Compute capability 8.9 (Ada); Jetson Orin is 8.7."""
RTX = "tensorrt-rtx"


def check_architecture(library: Library, architecture: str, schemes: set[str]) -> None:
    """Raise CompatibilityError where the library cannot build for it, or it cannot run the recipe's number formats."""
    if library.name == RTX and architecture not in rtx_architectures(library):
        known = ", ".join(rtx_architectures(library))
        raise CompatibilityError(
            f"{library.name} {library.version} does not build for {architecture}; pass one of {known}"
        )
    if "fp8" in schemes and capability(architecture) < FP8_SINCE:
        raise CompatibilityError(
            f"{architecture} has no FP8, which starts with SM89 (Jetson Orin is SM87); "
            "export with --precision int8 or int4"
        )


def rtx_architectures(library: Library) -> list[str]:
    """The compute capabilities that TensorRT-RTX builds for, e.g. "SM86"."""
    return [name for name in library.api.ComputeCapability.__members__ if name.startswith("SM")]


def capability(architecture: str) -> int:
    """ "SM87" as 87. Raises CompatibilityError for anything else."""
    digits = architecture.removeprefix("SM")
    if digits == architecture or not digits.isdigit():
        raise CompatibilityError(f"{architecture!r} is no architecture; pass one like SM86")
    return int(digits)


def create_network(library: Library, builder: Any) -> Any:
    """A network whose types are those of the graph. TensorRT 11 knows no other kind."""
    flag = getattr(library.api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def configure(library: Library, config: Any, architecture: str, version_compatible: bool, cache: Path | None) -> None:
    """Set what only one of the two has. Raises ExportError for an option that the library lacks."""
    if library.name == RTX:
        if version_compatible:
            raise ExportError("TensorRT-RTX has no version-compatible plans; drop --version-compatible")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.api.ComputeCapability, architecture), 0)
        return
    if version_compatible:
        config.set_flag(library.api.BuilderFlag.VERSION_COMPATIBLE)
    if cache is not None:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)


def save_timings(library: Library, config: Any, cache: Path | None) -> None:
    """Keep the kernels' timings for the next build."""
    if library.name == RTX or cache is None:
        return
    cache.write_bytes(memoryview(config.get_timing_cache().serialize()))


def cuda_version(library: Library) -> str:
    """The CUDA that the library's wheel is for, as its distribution's name says ("13"); "" where none is known."""
    names = importlib.metadata.packages_distributions().get(library.module.__name__, [])
    return next((match.group(1) for name in names if (match := re.search(r"cu(\d+)", name))), "")
