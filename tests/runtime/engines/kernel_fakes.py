"""A GPU that remembers what was launched, and weights that are nowhere: for the bookkeeping of our own kernels."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from reflectrt.runtime.engines.cuda import GpuFacts
from reflectrt.runtime.engines.cuda_kernels import Launch
from reflectrt.runtime.engines.device_memory import Block, DeviceBuffer, itemsize
from reflectrt.runtime.kernels.nvrtc import Compiled

PROCESSORS = 132


class FakeGpu:
    """Launches by the kernel's name, with a copy of its arguments."""

    stream = 7

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        self.capability = capability
        self.launched: list[tuple[str, Launch, Any]] = []
        self.shared: dict[str, int] = {}
        self.next = 1 << 20

    def facts(self) -> GpuFacts:
        return GpuFacts("a GPU", self.capability, (13, 0), 2**36)

    def processors(self) -> int:
        return PROCESSORS

    def shared_bytes(self) -> int:
        return 232_448

    def enter(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def upload(self, host: int, device: int, size: int) -> None:
        pass

    def load(self, code: bytes) -> bytes:
        return code

    def function(self, module: bytes, name: str, shared: int = 0) -> str:  # noqa: ARG002
        self.shared[name] = shared
        return name

    def launch(self, function: str, how: Launch, arguments: ctypes.Structure) -> None:
        self.launched.append((function, how, type(arguments).from_buffer_copy(arguments)))

    def capture(self, queue: Callable[[], None]) -> str:
        queue()
        return "work"

    def take(self, size: int) -> Block:
        """As a pool gives it."""
        self.next += size + 256
        return Block(self.next, size)

    def buffer(self, shape: tuple[int, ...], dtype: str = "bfloat16") -> DeviceBuffer:
        size = itemsize(dtype)
        for axis in shape:
            size *= axis
        return DeviceBuffer(self.take(size), 0, shape, dtype)


class FakeNvrtc:
    """A compiler that remembers what it was asked for."""

    asked: list[Mapping[str, Any]]

    def __init__(self) -> None:
        self.asked = []

    def compile(
        self, source: str, capability: tuple[int, int], macros: Mapping[str, Any], kernels: Sequence[str]
    ) -> Compiled:
        assert source and capability
        self.asked.append(macros)
        return Compiled(b"code", {name: name for name in kernels})

    def ahead(
        self, source: str, capability: tuple[int, int], macros: Mapping[str, Any], kernels: Sequence[str] = ()
    ) -> Future[Compiled]:
        done: Future[Compiled] = Future()
        done.set_result(self.compile(source, capability, macros, kernels))
        return done
