"""Which engine opens which bundle on which device."""

from __future__ import annotations

from ..bundle import Bundle
from ..engine import Engine
from ..errors import CompatibilityError

TENSORRT = ("tensorrt", "tensorrt-rtx")


def open_engine(bundle: Bundle, device: str, threads: int | None = None) -> Engine:
    """The bundle on "cpu", "cuda", or ("auto") what it was exported for; imports that engine's library only.

    Raises CompatibilityError where bundle and device do not fit, and ResourceError.
    """
    target = bundle.manifest.target
    if target in TENSORRT:
        if device == "cpu":
            raise CompatibilityError(f"{bundle.path} was exported for {target}; export with --target cpu for a CPU")
        from .tensorrt import TensorRTEngine

        return TensorRTEngine(bundle)
    if device == "cuda" or (device == "auto" and target == "cuda"):
        from .onnxruntime_cuda import OrtCudaEngine

        return OrtCudaEngine(bundle)
    if target == "cuda":
        raise CompatibilityError(f"{bundle.path} was exported for cuda; export with --target cpu to run it on a CPU")
    from .onnxruntime import OrtCpuEngine

    return OrtCpuEngine(bundle, threads)
