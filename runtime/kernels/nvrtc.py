"""CUDA C++ to machine code for the GPU at hand, by NVIDIA's run-time compiler (a package that ONNX Runtime's brings).

Source of names and numbers: the NVRTC documentation (docs.nvidia.com/cuda/nvrtc).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import byref, c_char_p, c_size_t, c_void_p
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import CompatibilityError, ReflectRTError

LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
BUILTINS = "libnvrtc-builtins.so.*"
FOLDERS = ("cu13/lib", "cuda_nvrtc/lib")
"""Where NVIDIA's packages put both, in `site-packages/nvidia`."""


@dataclass(frozen=True)
class Compiled:
    """Machine code for one kind of GPU, and the names that it gives to the kernels asked for."""

    code: bytes
    names: Mapping[str, str]


class Nvrtc:
    """The compiler."""

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Raises CompatibilityError where it is not installed."""
        self._thread = ThreadPoolExecutor(1)
        for place in _places():
            try:
                # The compiler looks for its builtins by name alone: where a package has them, they must be loaded.
                for builtins in sorted(Path(place).parent.glob(BUILTINS)):
                    load(str(builtins))
                self._library = load(place)
            except OSError:
                continue
            return
        raise CompatibilityError(
            f"NVIDIA's run-time compiler ({LIBRARIES[0]}) is not installed; "
            "run `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
        )

    def ahead(
        self, source: str, capability: tuple[int, int], macros: Mapping[str, str | int], kernels: Sequence[str] = ()
    ) -> Future[Compiled]:
        """`compile` on a thread; what it raises comes with the result."""
        return self._thread.submit(self.compile, source, capability, macros, kernels)

    def compile(
        self, source: str, capability: tuple[int, int], macros: Mapping[str, str | int], kernels: Sequence[str]
    ) -> Compiled:
        """Compile for GPUs of a compute capability. `kernels` are the template instances that are wanted.

        Raises ReflectRTError with the compiler's first complaint.
        """
        program = c_void_p()
        self._call("nvrtcCreateProgram", byref(program), source.encode(), None, 0, None, None)
        try:
            for name in kernels:
                self._call("nvrtcAddNameExpression", program, name.encode())
            options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17"]
            options += [f"-D{name}={value}" for name, value in macros.items()]
            array = (c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), array):
                raise ReflectRTError(f"a CUDA kernel does not compile: {self._complaint(program)}; please report this")
            return Compiled(self._bytes(program, "CUBIN"), {name: self._lowered(program, name) for name in kernels})
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _lowered(self, program: c_void_p, name: str) -> str:
        lowered = c_char_p()
        self._call("nvrtcGetLoweredName", program, name.encode(), byref(lowered))
        return (lowered.value or b"").decode()

    def _bytes(self, program: c_void_p, what: str) -> bytes:
        size = c_size_t()
        self._call(f"nvrtcGet{what}Size", program, byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, found)
        return found.raw

    def _complaint(self, program: c_void_p) -> str:
        lines = self._bytes(program, "ProgramLog").decode(errors="replace").splitlines()
        return next((line for line in lines if "error" in line), "no reason given")

    def _call(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise ReflectRTError(f"NVIDIA's run-time compiler failed in {function} ({status}); please report this")


def _places() -> list[str]:
    """Paths in NVIDIA's packages, where they are installed; then names, as the system has it."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    paths = (root / folder / name for root in roots for folder in FOLDERS for name in LIBRARIES)
    return [*(str(path) for path in paths if path.exists()), *LIBRARIES]
