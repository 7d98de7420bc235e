"""Kernels on a GPU's stream: machine code loaded, functions found, launches queued.

Source of names and numbers: the CUDA driver API reference, "Module Management" and "Execution Control".
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_uint, c_void_p
from dataclasses import dataclass
from functools import cached_property

from .cuda_graph import CapturingGpu

PROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
SHARED_LIMIT = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
EARLY = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
EARLY_CAPABILITY = (9, 0)
"""The first that starts a kernel before the one in front of it is done."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, and a union of 64 bytes."""

    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_int * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", c_uint),
    )


@dataclass(frozen=True)
class Launch:
    """Blocks of a launch, threads of a block, bytes of shared memory that a block asks for.

    An `early` kernel may start while the one in front of it runs, and waits for its results by itself.
    """

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0
    early: bool = True


class KernelGpu(CapturingGpu):
    """A GPU that runs kernels of our own."""

    @cached_property
    def _starts_early(self) -> bool:
        return self.facts().capability >= EARLY_CAPABILITY

    def shared_bytes(self) -> int:
        """Shared memory that a block may have at most."""
        return self._attribute(SHARED_LIMIT)

    def enter(self) -> None:
        """Make its context current, for a library that works in whichever is."""
        self._call("cuCtxSetCurrent", self._context)

    def processors(self) -> int:
        """How many multiprocessors it has."""
        return self._attribute(PROCESSORS)

    def load(self, code: bytes) -> c_void_p:
        """Machine code, loaded for as long as the process lives."""
        module = c_void_p()
        self._in_context("cuModuleLoadData", byref(module), code)
        return module

    def function(self, module: c_void_p, name: str, shared: int = 0) -> c_void_p:
        """A kernel by name, allowed as many bytes of shared memory."""
        function = c_void_p()
        self._in_context("cuModuleGetFunction", byref(function), module, name.encode())
        if shared:
            self._in_context("cuFuncSetAttribute", function, SHARED_BYTES, c_int(shared))
        return function

    def launch(self, function: c_void_p, how: Launch, arguments: ctypes.Structure) -> None:
        """Queue a kernel of one argument, a structure."""
        early = how.early and self._starts_early
        attribute = _Attribute(EARLY, 0, (c_int * 16)(1))
        config = _Config(
            how.grid, (how.threads, 1, 1), how.shared, self._stream, ctypes.pointer(attribute), int(early)
        )  # fmt: skip
        given = (c_void_p * 1)(ctypes.addressof(arguments))
        self._in_context("cuLaunchKernelEx", byref(config), function, given, None)
