"""Whether ONNX Runtime really runs a bundle on the GPU: it falls back to the CPU without a word where it cannot."""

from __future__ import annotations

import onnxruntime as ort

from ..bundle import Bundle
from ..errors import CompatibilityError
from .cuda import GpuFacts

PROVIDER = "CUDAExecutionProvider"
CAPABILITY = (8, 0)
"""The first with bfloat16 and the flash attention that the lowering counts on."""
FP8_CAPABILITY = (8, 9)
"""The first that multiplies fp8 by fp8."""

SHAPE_OPERATORS = {
    *("Shape", "Size", "Constant", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Gather", "Slice", "Expand"),
    *("Add", "Sub", "Mul", "Div", "Equal", "Range"),
}
"""What ONNX Runtime leaves on the host on purpose: arithmetic with shapes, a few numbers each."""


def check_provider(bundle: Bundle) -> None:
    """This bundle is for CUDA, and the installed ONNX Runtime has it."""
    target = bundle.manifest.target
    if target != "cuda":
        raise CompatibilityError(
            f"{bundle.path} was exported for {target}, this device is a GPU; "
            f"export with --target cuda, or pass --device {'cpu' if target == 'cpu' else 'auto'}"
        )
    if PROVIDER not in ort.get_available_providers():
        raise CompatibilityError(
            f"{bundle.path} was exported for cuda, the installed ONNX Runtime has none; run `pip uninstall "
            "onnxruntime` and `pip install 'onnxruntime-gpu[cuda,cudnn]'`, or export with --target cpu"
        )
    ort.preload_dlls()


def check_device(facts: GpuFacts) -> None:
    """The driver runs what ONNX Runtime was built for, and the GPU has the kernels' instructions."""
    wanted = int(_build_cuda().partition(".")[0])
    if facts.driver[0] < wanted:
        raise CompatibilityError(
            f"the NVIDIA driver runs CUDA {facts.driver[0]}.{facts.driver[1]}, ONNX Runtime {ort.__version__} is built "
            f"for CUDA {wanted}; update the driver, or install an onnxruntime-gpu for CUDA {facts.driver[0]}"
        )
    if facts.capability < CAPABILITY:
        raise CompatibilityError(
            f"{facts.name} has compute capability {_dotted(facts.capability)}, the CUDA target needs "
            f"{_dotted(CAPABILITY)} or newer; export with --target cpu"
        )


def check_nodes(session: ort.InferenceSession, name: str) -> None:
    """Every operator of a graph runs on the GPU, but for arithmetic with shapes."""
    if session.get_providers()[:1] != [PROVIDER]:
        raise CompatibilityError(
            f"ONNX Runtime {ort.__version__} could not start CUDA and would run {name} on the CPU; "
            "install CUDA's and cuDNN's libraries with `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
        )
    strayed = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
    } - SHAPE_OPERATORS
    if strayed:
        raise CompatibilityError(
            f"ONNX Runtime {ort.__version__} would run {', '.join(sorted(strayed))} of {name} on the CPU; "
            "install the onnxruntime-gpu that the bundle names, or export again"
        )


def _build_cuda() -> str:
    """The CUDA that ONNX Runtime was built for ("13.0"); CPU builds have none."""
    from onnxruntime.capi import build_and_package_info

    return str(getattr(build_and_package_info, "cuda_version", "") or "0")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
