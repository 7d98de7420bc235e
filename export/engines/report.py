"""What is in a built plan, as the builder tells it when asked for details: ports, layers with their types, memory.

TensorRT-RTX prints this while it builds, so a plan is inspected on a machine that cannot run it. TensorRT prints
another form; there the engine is inspected when it is loaded (`runtime/engines/tensorrt.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...runtime.plans import AxisRange

DTYPES = {
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Int64": "int64",
    "Int32": "int32",
    "UInt8": "uint8",
    "Int8": "int8",
    "Int4": "int4",
    "FP8": "float8e4m3fn",
    "Bool": "bool",
}

_PORT = re.compile(r"^ Name: (\S+), IOMode: (Input|Output), DataType: (\w+), Dimensions: \[([-\d,]*)\]")
_RANGE = re.compile(r"MinShape: \[([\d,]+)\], OptShape: \[([\d,]+)\], MaxShape: \[([\d,]+)\]")
_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?(?:Metadata: (?P<metadata>.*))?$"
)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_BYTES = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes")


@dataclass(frozen=True)
class EnginePort:
    """One input or output of a plan; -1 is a free axis. `shapes`: min, opt, max by profile (inputs only)."""

    name: str
    dtype: str
    axes: tuple[int, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class EngineLayer:
    """One kernel: the element types that it reads and writes, and the ONNX nodes that it computes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class EngineReport:
    """A built plan."""

    inputs: tuple[EnginePort, ...]
    outputs: tuple[EnginePort, ...]
    layers: tuple[EngineLayer, ...]

    def ranges(self, name: str, axis: int) -> list[AxisRange]:
        """Smallest, likeliest and largest size of an input's axis in each profile."""
        port = next(port for port in self.inputs if port.name == name)
        return [(least[axis], likeliest[axis], most[axis]) for least, likeliest, most in port.shapes]


@dataclass(frozen=True)
class Memory:
    """Bytes of device memory: all weights, and scratch of one run by profile."""

    weights: int
    scratch: tuple[int, ...]


def memory(kept: Iterable[str]) -> Memory:
    """Memory as the builder sums it up."""
    found = [match.groups() for text in kept if (match := _BYTES.match(text))]
    weights = [int(size) for kind, size in found if kind == "Weights"]
    return Memory(sum(weights), tuple(int(size) for kind, size in found if kind == "Activation"))


def report(kept: Iterable[str]) -> EngineReport | None:
    """The plan in what the builder printed; None where it printed nothing in this form."""
    lines = [line for text in kept if text.startswith("Layers:") for line in text.splitlines()]
    ports = [(match.group(2), _port(match, line)) for line in lines if (match := _PORT.match(line))]
    if not ports:
        return None
    layers = [_layer(match) for line in lines if (match := _LAYER.match(line))]
    inputs, outputs = (tuple(port for mode, port in ports if mode == wanted) for wanted in ("Input", "Output"))
    return EngineReport(inputs, outputs, tuple(layers))


def _port(match: re.Match[str], line: str) -> EnginePort:
    shapes = tuple(tuple(_numbers(shape) for shape in found.groups()) for found in _RANGE.finditer(line))
    return EnginePort(match.group(1), DTYPES.get(match.group(3), match.group(3)), _numbers(match.group(4)), shapes)


def _layer(match: re.Match[str]) -> EngineLayer:
    inputs, constants, outputs = (
        tuple(DTYPES.get(name, name) for name in _DATATYPE.findall(match.group(part)))
        for part in ("inputs", "constants", "outputs")
    )
    nodes = tuple(_ONNX_LAYER.findall(match.group("metadata") or ""))
    return EngineLayer(match.group("name"), match.group("kind"), inputs, constants, outputs, nodes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
