"""What all engines over ONNX Runtime share: checks of a loaded graph, and its errors in our words."""

from __future__ import annotations

import onnxruntime as ort

from ..contract import FLOAT, Signature
from ..errors import BundleError, CompatibilityError, ReflectRTError, ResourceError


def check_ports(session: ort.InferenceSession, name: str, wanted: Signature, activation: str) -> None:
    """The file's inputs and outputs are the manifest's, in name, type and rank."""
    for found, ports in ((session.get_inputs(), wanted.inputs), (session.get_outputs(), wanted.outputs)):
        actual = {node.name: (node.type, len(node.shape)) for node in found}
        expected = {
            port.name: (_ort_type(activation if port.dtype == FLOAT else port.dtype), len(port.axes)) for port in ports
        }
        if actual != expected:
            odd = sorted({*actual.items()} ^ {*expected.items()})[0][0]
            raise BundleError(f"graph {name} differs from the manifest at {odd!r}; export the bundle again")


def _ort_type(dtype: str) -> str:
    names = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
    return f"tensor({names.get(dtype, dtype)})"


def check_version(oldest: str, package: str = "onnxruntime") -> None:
    """Raise CompatibilityError where ONNX Runtime is older than the bundle needs."""
    if _numbers(ort.__version__) < _numbers(oldest):
        raise CompatibilityError(
            f"the bundle needs ONNX Runtime {oldest} or newer, installed is {ort.__version__}; "
            f"run `pip install --upgrade {package}`"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def failure(graph: str, error: Exception) -> ReflectRTError:
    """An error of ONNX Runtime in a run, as ours."""
    text = first_line(error)
    if "alloc" in text.lower():
        return ResourceError(f"no memory left in {graph} ({text}); use a smaller --max-frames or --max-pixels")
    return ReflectRTError(f"{graph} failed: {text}; please report this")


def first_line(error: Exception) -> str:
    """The first line of an error's text, cut where it is endless."""
    return str(error).strip().splitlines()[0][:300]
