"""Portable graphs build with TensorRT-RTX on a machine without a GPU, and its parser uses every input of every node.

In float16 and bfloat16: TensorRT has no attention kernel for float32.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from exports import Exports, with_capacity
from reflectrt.export.bundle import _model_facts
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.runtime.contract import Port, signatures

pytestmark = pytest.mark.trt

CAPACITY = 1024
# The smallest, likeliest and largest number for each free axis.
PROFILE = {"tokens": (1, 64, 512), "grids": (1, 2, 4), "patches": (4, 288, 1024), "windows": (1, 6, 64)}
DROPPED = re.compile("unused|ignor|dropp|not used", re.IGNORECASE)
# Told of every int64 input, which ours are; and of kernels for convolutions, which ours have none of.
HARMLESS = re.compile("Make sure input .* has Int64 binding|unused tactic source")
ARCHITECTURES = ["SM86", "SM89", "SM120"]


@cache
def parser_log() -> Any:
    """The process's one logger: TensorRT takes no second."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]  # untyped
        """Keeps what the parser and the builder say."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append((severity, text))

        def complaints(self) -> list[str]:
            """Errors and warnings, and whatever speaks of inputs that are not used."""
            levels = trt.ILogger.Severity
            bad = (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING)
            found = [text for severity, text in self.lines if severity in bad or DROPPED.search(text)]
            return [text for text in found if not HARMLESS.search(text)]

    return Log()


@pytest.fixture
def log() -> Any:
    found = parser_log()
    found.lines.clear()
    return found


def build(file: Path, ports: tuple[Port, ...], log: Any, architectures: list[str]) -> None:
    """Parse a graph and build a plan for each architecture."""
    import tensorrt_rtx as trt

    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(file)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert [network.get_input(i).name for i in range(network.num_inputs)] == [port.name for port in ports]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for port in ports:
        if any(isinstance(axis, str) for axis in port.axes):
            profile.set_shape(port.name, *shapes(port))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    for architecture in architectures:
        config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
        plan = builder.build_serialized_network(network, config)
        assert plan is not None, (architecture, log.complaints())
        assert plan.nbytes > 10_000


def inputs(exports: Exports, graph: str) -> tuple[Port, ...]:
    facts = _model_facts(Checkpoint.open(exports.checkpoint()), 1)
    return with_capacity(signatures(facts.sizes())[graph], CAPACITY).inputs


def shapes(port: Port) -> list[tuple[int, ...]]:
    """The smallest, likeliest and largest shape of an input."""
    return [tuple(PROFILE[axis][i] if isinstance(axis, str) else axis for axis in port.axes) for i in range(3)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_a_portable_graph_builds_for_every_architecture(exports: Exports, log: Any, graph: str, dtype: str) -> None:
    build(exports.portable(graph, dtype=dtype, capacity=CAPACITY), inputs(exports, graph), log, ARCHITECTURES)
    assert log.complaints() == []


def test_an_input_that_is_dropped_is_noticed(exports: Exports, log: Any, tmp_path: Path) -> None:
    """What is looked for exists: Attention's `nonpad_kv_seqlen`, here read from an input of its own, is dropped."""
    model = ir.load(exports.portable("decoder", dtype="float16", capacity=CAPACITY))
    lengths = ir.Value(name="lengths", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    model.graph.inputs.append(lengths)
    for node in model.graph:
        if node.op_type == "Attention":
            node.resize_inputs(7)
            node.replace_input_with(6, lengths)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
    ir.save(model, tmp_path / "dropped.onnx")
    build(tmp_path / "dropped.onnx", (*inputs(exports, "decoder"), Port("lengths", (1,), "int64")), log, ["SM89"])
    assert any("lengths" in text for text in log.complaints()), log.complaints()
