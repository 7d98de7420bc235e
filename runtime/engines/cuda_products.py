"""Products of fp8 matrices by NVIDIA's cuBLASLt, which ONNX Runtime needs as well; nothing waits for the device.

Source of names and numbers: the cuBLAS documentation, "Using the cuBLASLt API" (docs.nvidia.com/cuda/cublas).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float, c_int, c_int8, c_int32, c_size_t, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any

from ..errors import CompatibilityError, ReflectRTError
from .cuda_kernels import KernelGpu
from .device_memory import Pool

LIBRARIES = ("libcublasLt.so.13", "libcublasLt.so.12")
FLOAT32, BFLOAT16, FP8 = 0, 14, 28  # cudaDataType
COMPUTE_FLOAT32 = 68  # cublasComputeType_t
TRANSPOSED, SCALE_OF_A, SCALE_OF_B, FAST_ACCUMULATION = 3, 17, 18, 25  # cublasLtMatmulDescAttributes_t
MOST_WORKSPACE = 1  # cublasLtMatmulPreferenceAttributes_t
WORKSPACE_BYTES = 2**25
"""What NVIDIA recommends for Hopper."""


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True)
class Shape:
    """`out` [rows, outputs] = x [rows, inputs] @ weight [outputs, inputs].T; rows of `out` lie `stride` apart.

    With `added` the product is added to what is in `out`.
    """

    rows: int
    inputs: int
    outputs: int
    stride: int
    added: bool = False


@dataclass(frozen=True)
class Operands:
    """Addresses: fp8 `weight` and `x`, what each is multiplied by (a float32), and bfloat16 `out`."""

    weight: int
    weight_step: int
    x: int
    x_step: int
    out: int


class _Plan:
    """Descriptors of one shape, and the algorithm chosen for it."""

    def __init__(self, description: c_void_p, layouts: list[c_void_p], heuristic: _Heuristic) -> None:
        self.description, self.layouts, self.heuristic = description, layouts, heuristic


class Fp8Products:
    """Products on a GPU's stream."""

    def __init__(self, gpu: KernelGpu, pool: Pool, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Raises CompatibilityError where cuBLASLt is not installed."""
        self._library, self._gpu = _library(load), gpu
        self._workspace = pool.take(WORKSPACE_BYTES)
        self._handle = c_void_p()
        gpu.enter()
        self._call("cublasLtCreate", byref(self._handle))
        self._plans: dict[Shape, _Plan] = {}

    def multiply(self, shape: Shape, operands: Operands) -> None:
        """Queue a product."""
        self._gpu.enter()
        plan = self._plans.setdefault(shape, self._plans.get(shape) or self._plan(shape))
        self._set(plan.description, SCALE_OF_A, c_uint64(operands.weight_step))
        self._set(plan.description, SCALE_OF_B, c_uint64(operands.x_step))
        weight, x, out = plan.layouts
        self._call(
            "cublasLtMatmul", self._handle, plan.description,
            byref(c_float(1.0)), c_uint64(operands.weight), weight, c_uint64(operands.x), x,
            byref(c_float(float(shape.added))), c_uint64(operands.out), out, c_uint64(operands.out), out,
            byref(plan.heuristic), c_uint64(self._workspace.address), c_size_t(WORKSPACE_BYTES),
            c_void_p(self._gpu.stream),
        )  # fmt: skip

    def _plan(self, shape: Shape) -> _Plan:
        """cuBLAS counts by columns: our rows are its columns, our weight its transposed first operand."""
        description = c_void_p()
        self._call("cublasLtMatmulDescCreate", byref(description), COMPUTE_FLOAT32, FLOAT32)
        self._set(description, TRANSPOSED, c_int32(1))
        self._set(description, FAST_ACCUMULATION, c_int8(1))
        layouts = [
            self._layout(FP8, shape.inputs, shape.outputs, shape.inputs),
            self._layout(FP8, shape.inputs, shape.rows, shape.inputs),
            self._layout(BFLOAT16, shape.outputs, shape.rows, shape.stride),
        ]
        return _Plan(description, layouts, self._best(shape, description, layouts))

    def _best(self, shape: Shape, description: c_void_p, layouts: list[c_void_p]) -> _Heuristic:
        preference, found, heuristic = c_void_p(), c_int(), _Heuristic()
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        most = c_size_t(WORKSPACE_BYTES)
        self._call("cublasLtMatmulPreferenceSetAttribute", preference, MOST_WORKSPACE, byref(most), c_size_t(8))
        weight, x, out = layouts
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, description, weight, x, out, out, preference, 1,
            byref(heuristic), byref(found),
        )  # fmt: skip
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        if not found.value:
            raise ReflectRTError(f"cuBLASLt has no fp8 product for {shape}; please report this")
        return heuristic

    def _layout(self, dtype: int, rows: int, columns: int, stride: int) -> c_void_p:
        layout = c_void_p()
        sizes = (c_uint64(rows), c_uint64(columns), ctypes.c_int64(stride))
        self._call("cublasLtMatrixLayoutCreate", byref(layout), dtype, *sizes)
        return layout

    def _set(self, description: c_void_p, attribute: int, value: Any) -> None:
        size = c_size_t(sizeof(value))
        self._call("cublasLtMatmulDescSetAttribute", description, attribute, byref(value), size)

    def _call(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise ReflectRTError(f"cuBLASLt failed in {function} ({status}); restart, and report it if it stays")


def _library(load: Callable[[str], Any]) -> Any:
    for name in LIBRARIES:
        try:
            return load(name)
        except OSError:
            continue
    raise CompatibilityError(
        f"cuBLASLt ({LIBRARIES[0]}) is not installed; run `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
    )
