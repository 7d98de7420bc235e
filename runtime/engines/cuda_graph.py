"""CUDA graphs: work that was queued once on a GPU's stream is queued again in a single call.

Source of names and numbers: the CUDA driver API reference, "Stream Management" and "Graph Management".
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_uint64, c_void_p

from .cuda import Gpu

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


class CapturingGpu(Gpu):
    """A GPU whose stream's work can be recorded."""

    def capture(self, queue: Callable[[], None]) -> CapturedWork:
        """Record what `queue` puts on the stream, without running it. Addresses and sizes are recorded as they are."""
        graph, executable = c_void_p(), c_void_p()
        self._in_context("cuStreamBeginCapture_v2", self._stream, THREAD_LOCAL)
        try:
            queue()
        finally:
            self._call("cuStreamEndCapture", self._stream, byref(graph))
        self._in_context("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return CapturedWork(self, executable)

    def replay(self, executable: c_void_p) -> None:
        """Queue recorded work."""
        self._in_context("cuGraphLaunch", executable, self._stream)

    def forget(self, executable: c_void_p) -> None:
        """Free recorded work."""
        self._in_context("cuGraphExecDestroy", executable)


class CapturedWork:
    """Recorded work; freed with this object."""

    def __init__(self, gpu: CapturingGpu, executable: c_void_p) -> None:
        self._gpu, self._executable = gpu, executable

    def replay(self) -> None:
        """Queue it once more."""
        self._gpu.replay(self._executable)

    def __del__(self) -> None:
        self._gpu.forget(self._executable)
