"""One graph, one plan: every number format for an architecture that runs it, and what the builder does not let pass."""

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from exports import Exports
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import Port, Signature
from reflectrt.runtime.errors import ExportError
from tensorrt_bundles import Quiet, copied, tensorrt_bundle

pytest.importorskip("tensorrt_rtx")
from reflectrt.export.engines.build import Request, build
from reflectrt.export.engines.plans import BuildOptions, build_plans
from reflectrt.export.engines.precision import check_precision, quantized_weights
from reflectrt.export.engines.profiles import Limits, profiles
from reflectrt.export.engines.report import EngineLayer, EngineReport
from reflectrt.runtime.engines.tensorrt_library import load_library

pytestmark = pytest.mark.trt

# One architecture a precision; `python -m reflectrt.bench.tensorrt_builds` builds them all.
PAIRS = [("fp16", "SM80"), ("int8", "SM86"), ("fp8", "SM89"), ("int4", "SM120"), ("bf16", "SM121")]


@pytest.mark.parametrize(("precision", "architecture"), PAIRS)
def test_all_graphs_build_in_every_precision(
    exports: Exports, tmp_path: Path, precision: str, architecture: str
) -> None:
    """Building itself holds ports, profiles, caches and the kernels' types against contract and recipe."""
    folder = copied(tensorrt_bundle(exports, precision), tmp_path)
    options = BuildOptions((architecture,), capacities=(1024,), max_patches=1024, chunk_tokens=256)
    manifest = build_plans(open_bundle(folder), options, Quiet())
    assert {plan.graph for plan in manifest.plans} == set(manifest.graphs)


def test_a_reflection_head_is_a_plan_too(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16", "mlp-head"), tmp_path)
    manifest = build_plans(open_bundle(folder), BuildOptions(("SM89",), (1024,), 1024, 256), Quiet())
    assert {plan.graph for plan in manifest.plans} == {"vision", "embed", "decoder", "reflect", "head"}


def decoder_request(exports: Exports, file: Path | None = None) -> Request:
    bundle = open_bundle(tensorrt_bundle(exports, "fp16"))
    return Request(
        graph="decoder",
        file=file or bundle.file("decoder.onnx"),
        signature=bundle.manifest.graphs["decoder"].signature(),
        activation="float16",
        capacity=512,
        profiles=profiles("decoder", bundle.manifest.model, Limits(512, chunk_tokens=128)),
        architecture="SM89",
    )


def with_lengths(exports: Exports, folder: Path) -> Path:
    """The decoder whose Attention reads `nonpad_kv_seqlen` from an input of its own."""
    model = ir.load(tensorrt_bundle(exports, "fp16") / "decoder.onnx")
    lengths = ir.Value(name="lengths", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    model.graph.inputs.append(lengths)
    for node in model.graph:
        if node.op_type == "Attention":
            node.resize_inputs(7)
            node.replace_input_with(6, lengths)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
    ir.save(model, folder / "dropped.onnx")
    return folder / "dropped.onnx"


def test_an_input_that_the_parser_drops_stops_the_build(exports: Exports, tmp_path: Path) -> None:
    """Attention's `nonpad_kv_seqlen` is read and ignored: such a plan would answer, and wrongly."""
    request = decoder_request(exports, with_lengths(exports, tmp_path))
    wider = Signature((*request.signature.inputs, Port("lengths", (1,), "int64")), request.signature.outputs)
    with pytest.raises(ExportError, match=r"complains about decoder.*lengths"):
        build(load_library("tensorrt-rtx"), replace(request, signature=wider))


def test_ports_other_than_the_contracts_stop_the_build(exports: Exports) -> None:
    request = decoder_request(exports)
    renamed = (replace(request.signature.inputs[0], name="inputs"), *request.signature.inputs[1:])
    with pytest.raises(ExportError, match=r"not .*'inputs'"):
        build(load_library("tensorrt-rtx"), replace(request, signature=replace(request.signature, inputs=renamed)))


def test_weights_are_shared_between_the_profiles(exports: Exports) -> None:
    request = decoder_request(exports)
    library = load_library("tensorrt-rtx")
    both, one = (build(library, replace(request, profiles=request.profiles[:count])) for count in (2, 1))
    assert both.memory.weights == one.memory.weights
    assert len(both.memory.scratch) == 2


def test_attention_is_one_kernel_and_caches_are_written_in_place(exports: Exports) -> None:
    found = build(load_library("tensorrt-rtx"), decoder_request(exports)).report
    assert found is not None
    assert sum("mha" in layer.name for layer in found.layers) == 2 * 2  # layers x profiles
    assert found.ranges("embeddings", 1) == [(1, 1, 128), (1, 128, 128)]


def layer(inputs: tuple[str, ...], constants: tuple[str, ...]) -> EngineReport:
    return EngineReport((), (), (EngineLayer("k", "gemm", inputs, constants, ("bfloat16",), ("up_proj/MatMul",)),))


def test_a_kernel_in_another_type_than_the_recipes_is_noticed() -> None:
    wanted = {"up_proj.weight": "int8"}
    check_precision(layer(("int8",), ("int8", "float32")), "decoder", wanted, "bfloat16")
    for inputs, constants in ((("bfloat16",), ("bfloat16",)), ((), ("int8",)), (("bfloat16",), ("int8",))):
        with pytest.raises(ExportError, match="up_proj"):
            check_precision(layer(inputs, constants), "decoder", wanted, "bfloat16")
    with pytest.raises(ExportError, match="quantized up_proj, which is to stay in bfloat16"):
        check_precision(layer(("bfloat16",), ("int8",)), "decoder", {}, "bfloat16")


def test_a_layer_that_the_recipe_leaves_alone_is_not_to_be_quantized(exports: Exports) -> None:
    """Of a plan whose layers all are quantized, each one that the recipe does not name is noticed."""
    bundle = open_bundle(tensorrt_bundle(exports, "int8"))
    request = decoder_request(exports, bundle.file("decoder.onnx"))
    found = build(load_library("tensorrt-rtx"), replace(request, activation="bfloat16")).report
    assert found is not None
    weights = quantized_weights(bundle.manifest, "decoder")
    check_precision(found, "decoder", weights, "bfloat16")
    alone = [name for name in weights if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(alone) == 4
    for name in alone:  # others share a kernel with those that read the same
        less = {weight: scheme for weight, scheme in weights.items() if weight != name}
        with pytest.raises(ExportError, match=f"quantized {name.removesuffix('.weight')}, which is to stay"):
            check_precision(found, "decoder", less, "bfloat16")
