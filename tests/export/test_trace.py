from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from exports import Exports
from reflectrt.export.bundle import _model_facts
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.trace import OPSET
from reflectrt.runtime.contract import FLOAT, signatures

GRAPHS = ["vision", "embed", "decoder", "head"]


@pytest.fixture(scope="module")
def checkpoint(exports: Exports) -> Checkpoint:
    return Checkpoint.open(exports.checkpoint())


@pytest.fixture(scope="module")
def models(exports: Exports) -> dict[str, ir.Model]:
    return {graph: ir.load(exports.portable(graph)) for graph in GRAPHS}


@pytest.mark.parametrize("graph", GRAPHS)
def test_only_standard_operators_of_opset_24_are_used(models: dict[str, ir.Model], graph: str) -> None:
    model = models[graph]
    assert model.opset_imports == {"": OPSET} == {"": 24}
    assert {node.domain for node in model.graph} == {""}
    assert not model.functions
    for operator in {node.op_type for node in model.graph}:
        onnx.defs.get_schema(operator, 24)  # raises where there is none


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_model_passes_onnx_s_own_checker(exports: Exports, graph: str) -> None:
    onnx.checker.check_model(str(exports.portable(graph)), full_check=True)


def test_initializers_are_named_as_the_checkpoint_s_tensors(
    models: dict[str, ir.Model], checkpoint: Checkpoint
) -> None:
    names = [str(name) for model in models.values() for name in model.graph.initializers]
    weights = [name for name in names if name.endswith((".weight", ".bias"))]
    assert sorted(weights) == sorted(checkpoint.tensors)
    assert sorted(set(names) - set(weights)) == [
        *("model.language_model.inv_freq", "model.language_model.mrope_axes"),
        *("model.visual.inv_freq", "model.visual.pixel_scale", "model.visual.pixel_shift"),
    ]


def test_nodes_that_read_a_weight_are_named_after_it(models: dict[str, ir.Model]) -> None:
    for model in models.values():
        for node in model.graph:
            weights = [
                v.name for v in node.inputs if v is not None and v.is_initializer() and v.name.endswith("weight")
            ]
            if weights:
                assert node.name == f"{weights[-1].removesuffix('.weight')}/{node.op_type}"
    names = {node.name for node in models["decoder"].graph}
    assert "model.language_model.layers.0.mlp.up_proj/MatMul" in names
    assert "model.language_model.layers.1.self_attn.q_proj/Add" in names


def test_node_names_are_unique(models: dict[str, ir.Model]) -> None:
    for model in models.values():
        repeated = [name for name, count in Counter(node.name for node in model.graph).items() if count > 1]
        assert not repeated


@pytest.mark.parametrize("graph", GRAPHS)
def test_inputs_and_outputs_are_the_contract_s(models: dict[str, ir.Model], checkpoint: Checkpoint, graph: str) -> None:
    signature = signatures(_model_facts(checkpoint, 1).sizes())[graph]
    names = {FLOAT: "FLOAT", "float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}
    for values, ports in (
        (models[graph].graph.inputs, signature.inputs),
        (models[graph].graph.outputs, signature.outputs),
    ):
        assert [value.name for value in values] == [port.name for port in ports]
        for value, port in zip(values, ports, strict=True):
            assert value.shape is not None
            assert value.dtype is not None
            assert tuple(str(axis) for axis in value.shape) == tuple(str(axis) for axis in port.axes)
            assert value.dtype.name == names[port.dtype]


def test_every_layer_attends_and_scatters_its_cache(models: dict[str, ir.Model], checkpoint: Checkpoint) -> None:
    counts = Counter(node.op_type for node in models["decoder"].graph)
    layers = checkpoint.text.layers
    assert counts["Attention"] == layers
    assert counts["TensorScatter"] == counts["RotaryEmbedding"] == 2 * layers
    assert counts["RMSNormalization"] == 2 * layers + 1
    assert counts["MatMul"] == 7 * layers
    blocks = Counter(node.op_type for node in models["vision"].graph)
    assert blocks["Attention"] == checkpoint.vision.depth


def test_attention_is_under_an_explicit_mask_where_rows_are_not_filled(models: dict[str, ir.Model]) -> None:
    # TensorRT's parser drops `nonpad_kv_seqlen`, the seventh input; the mask is the fourth.
    for node in models["decoder"].graph:
        if node.op_type == "Attention":
            assert [value is not None for value in node.inputs] == [True] * 4
            assert "is_causal" not in node.attributes or node.attributes["is_causal"].as_int() == 0


def test_no_weight_is_in_the_graph_file(exports: Exports) -> None:
    path: Path = exports.portable("decoder")
    for value in ir.load(path).graph.initializers.values():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor) or (tensor is not None and tensor.nbytes <= 1024)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_angles_and_pixels_in_float32(exports: Exports, dtype: str) -> None:
    graph = ir.load(exports.portable("decoder", dtype=dtype, capacity=1024)).graph
    assert graph.initializers["model.language_model.inv_freq"].dtype == ir.DataType.FLOAT
    assert graph.inputs[0].dtype == ir.DataType[dtype.upper()]
    (cosine,) = [node for node in graph if node.op_type == "Cos"]
    assert cosine.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("activation", "weight"), [("bfloat16", "FLOAT16"), ("float16", "FLOAT16"), ("float32", "FLOAT")]
)
def test_logits_are_float32_and_never_multiplied_in_bfloat16(exports: Exports, activation: str, weight: str) -> None:
    graph = ir.load(exports.portable("head", dtype=activation)).graph
    (product,) = (node for node in graph if node.op_type == "Gemm")
    assert {value.dtype for value in product.inputs if value is not None} == {ir.DataType[weight]}
    assert graph.inputs[0].dtype == ir.DataType["FLOAT" if activation == "float32" else activation.upper()]
    assert graph.outputs[0].dtype == ir.DataType.FLOAT
