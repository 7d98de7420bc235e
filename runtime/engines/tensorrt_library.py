"""TensorRT, TensorRT-RTX and TensorRT's lean runtime: which module each is, and which versions will do.

The three have the same API. What differs in building is in `export/engines/flavour.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from ..errors import CompatibilityError
from ..plans import EnginePlan, version_numbers

LibraryName = Literal["tensorrt", "tensorrt-rtx"]

# TensorRT's release notes name 10.15.1 for in-place KV cache updates; 1.7 is the oldest TensorRT-RTX that was tried.
OLDEST: dict[LibraryName, str] = {"tensorrt": "10.15.1", "tensorrt-rtx": "1.7"}
MODULES: dict[LibraryName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LEAN_MODULE = "tensorrt_lean"

INSTALL: dict[LibraryName, str] = {
    "tensorrt": "on a Jetson install JetPack 7.2 or newer (`apt install nvidia-jetpack`), elsewhere run "
    "`pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13`",
    "tensorrt-rtx": "run `pip install tensorrt-rtx-cu13`",
}
INSTALL_LEAN = "run `pip install --extra-index-url https://pypi.nvidia.com tensorrt-lean-cu13`"

# JetPack by the TensorRT that it ships, for whoever has an older one.
JETPACKS: dict[tuple[int, ...], str] = {(10, 3): "6.x", (10, 13): "7.0 or 7.1", (10, 16): "7.2"}


@dataclass(frozen=True)
class Library:
    """A loaded library."""

    name: LibraryName
    module: ModuleType
    version: str
    lean: bool = False
    """Only the runtime for version-compatible plans: it builds nothing."""

    @property
    def api(self) -> Any:
        """The module, which has no types."""
        return self.module


def load_library(name: LibraryName, lean: bool = False) -> Library:
    """Import a library. Raises CompatibilityError: missing, a stub without the library, or too old."""
    module_name = LEAN_MODULE if lean else MODULES[name]
    install = INSTALL_LEAN if lean else INSTALL[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        raise CompatibilityError(f"{module_name} is not installed; {install}") from None
    except (ImportError, OSError) as error:  # its shared objects are not there, or want another CUDA
        reason = str(error).splitlines()[0][:200]
        raise CompatibilityError(f"{module_name} is installed but does not load ({reason}); {install}") from None
    if not hasattr(module, "Runtime") or not (lean or hasattr(module, "Builder")):
        raise CompatibilityError(f"the installed {module_name} is a stub without the library in it; {install}")
    version = str(module.__version__)
    _check_version(name, version, install)
    return Library(name, module, version, lean)


def library_for(name: LibraryName, plans: Iterable[EnginePlan]) -> Library:
    """The library that runs these plans: where only the lean runtime is installed, that, for version-compatible ones.

    Raises CompatibilityError.
    """
    try:
        return load_library(name)
    except CompatibilityError:
        if not any(plan.version_compatible for plan in plans):
            raise
        return load_library(name, lean=True)


def _check_version(name: LibraryName, version: str, install: str) -> None:
    if version_numbers(version) >= version_numbers(OLDEST[name]):
        return
    jetpack = JETPACKS.get(version_numbers(version)[:2]) if name == "tensorrt" else None
    whose = f" (JetPack {jetpack})" if jetpack else ""
    lacks = ", which has no in-place KV cache" if name == "tensorrt" else ""
    raise CompatibilityError(f"{name} is {version}{whose}{lacks}; {OLDEST[name]} or newer is needed: {install}")
