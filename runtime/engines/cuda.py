"""The NVIDIA driver through its C interface: what the GPU is, its memory, and copies on one stream.

`libcuda.so.1` comes with the driver, so device memory needs neither a CUDA toolkit nor a Python binding. All work of an
engine, ours and ONNX Runtime's, is on one stream: what is queued later runs later. Copies to and on the GPU are only
queued, and a graph's run may be (`Gpu.wait`); a download is done when it returns.
Source of names and numbers: the CUDA driver API reference (docs.nvidia.com/cuda/cuda-driver-api).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from ..errors import CompatibilityError, ReflectRTError

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


class DeviceMemoryError(ReflectRTError):
    """The GPU has no memory left."""


@dataclass(frozen=True)
class GpuFacts:
    """What a GPU and its driver are; `driver` is the newest CUDA it runs, as (major, minor)."""

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    total_bytes: int


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D: equal pieces of memory at equal distances."""

    _fields_ = (
        ("srcXInBytes", c_size_t),
        ("srcY", c_size_t),
        ("srcMemoryType", c_uint),
        ("srcHost", c_void_p),
        ("srcDevice", c_uint64),
        ("srcArray", c_void_p),
        ("srcPitch", c_size_t),
        ("dstXInBytes", c_size_t),
        ("dstY", c_size_t),
        ("dstMemoryType", c_uint),
        ("dstHost", c_void_p),
        ("dstDevice", c_uint64),
        ("dstArray", c_void_p),
        ("dstPitch", c_size_t),
        ("WidthInBytes", c_size_t),
        ("Height", c_size_t),
    )


class Gpu:
    """One GPU's primary context (ONNX Runtime uses it too) and a stream in it. Addresses are plain numbers."""

    def __init__(self, index: int = 0, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Raises CompatibilityError where there is no driver or no such GPU."""
        try:
            self._library = load(LIBRARY)
        except OSError:
            raise CompatibilityError(
                f"no NVIDIA driver is installed ({LIBRARY}); use a machine with a GPU or export with --target cpu"
            ) from None
        if status := self._library.cuInit(0):
            raise CompatibilityError(f"no NVIDIA GPU can be used ({self._name(status)}); export with --target cpu")
        self._device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(self._device), index)
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context = context
        stream = c_void_p()
        self._in_context("cuStreamCreate", byref(stream), NON_BLOCKING)
        self._stream = stream

    @property
    def stream(self) -> int:
        """The stream's address."""
        return int(self._stream.value or 0)

    def facts(self) -> GpuFacts:
        """What this GPU is."""
        name, total, version = ctypes.create_string_buffer(128), c_size_t(), c_int()
        self._call("cuDeviceGetName", name, len(name), self._device)
        self._call("cuDeviceTotalMem_v2", byref(total), self._device)
        self._call("cuDriverGetVersion", byref(version))
        capability = (self._attribute(CAPABILITY_MAJOR), self._attribute(CAPABILITY_MINOR))
        driver = (version.value // 1000, version.value % 1000 // 10)
        return GpuFacts(name.value.decode(), capability, driver, total.value)

    def free_bytes(self) -> int:
        """Memory that is free on the GPU now, whoever uses it."""
        free, total = c_size_t(), c_size_t()
        self._in_context("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes; DeviceMemoryError where there is no room."""
        address = c_uint64()
        self._in_context("cuMemAlloc_v2", byref(address), c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._in_context("cuMemFree_v2", c_uint64(address))

    def upload(self, host: int, device: int, size: int) -> None:
        """Copy bytes to the GPU; the host's may change as soon as this returns."""
        self._in_context("cuMemcpyHtoDAsync_v2", c_uint64(device), c_void_p(host), c_size_t(size), self._stream)

    def download(self, device: int, host: int, size: int) -> None:
        """Copy bytes to the host, once everything queued before is done."""
        self._in_context("cuMemcpyDtoHAsync_v2", c_void_p(host), c_uint64(device), c_size_t(size), self._stream)
        self.wait()

    def wait(self) -> None:
        """Until everything queued so far is done. Raises ReflectRTError where something of it failed."""
        self._in_context("cuStreamSynchronize", self._stream)

    def clear(self, device: int, size: int) -> None:
        """Fill bytes with zeros."""
        self._in_context("cuMemsetD8Async", c_uint64(device), ctypes.c_ubyte(0), c_size_t(size), self._stream)

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy bytes on the GPU."""
        self._in_context("cuMemcpyDtoDAsync_v2", c_uint64(target), c_uint64(source), c_size_t(size), self._stream)

    def copy_pieces(self, source: int, target: int, size: int, pitches: tuple[int, int], count: int) -> None:
        """Copy `count` pieces of `size` bytes that start `pitches` (source's, target's) bytes apart."""
        pieces = _Copy2D(
            srcMemoryType=ON_DEVICE,
            srcDevice=source,
            srcPitch=pitches[0],
            dstMemoryType=ON_DEVICE,
            dstDevice=target,
            dstPitch=pitches[1],
            WidthInBytes=size,
            Height=count,
        )
        self._in_context("cuMemcpy2DAsync_v2", byref(pieces), self._stream)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _in_context(self, function: str, *arguments: Any) -> None:
        """Call with our context current: another library, or another thread, may have set its own."""
        self._call("cuCtxSetCurrent", self._context)
        self._call(function, *arguments)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status == OUT_OF_MEMORY:
            raise DeviceMemoryError("the GPU has no memory left; use a smaller --max-frames or --max-pixels")
        if status:
            raise ReflectRTError(
                f"the GPU failed in {function} ({self._name(status)}); restart, and report it if it stays"
            )

    def _name(self, status: int) -> str:
        name = c_char_p()
        known = self._library.cuGetErrorName(status, byref(name)) == 0 and name.value
        return name.value.decode() if known and name.value else f"error {status}"
