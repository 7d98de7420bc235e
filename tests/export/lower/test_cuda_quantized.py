from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports, Silence
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower import cuda, cuda_quantized
from reflectrt.export.lower.quantized_linears import find_quantized_linears
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.recipe import Fold
from reflectrt.export.targets import TARGETS

LAYERS = 2


def quantized(exports: Exports, graph: str, precision: str) -> ir.Model:
    """A float32 graph with quantized weights, as every lowering gets it."""
    model = external_data.load_to_model(ir.load(exports.portable(graph)))
    recipe = default_recipe(Checkpoint.open(exports.checkpoint()), precision)
    assert recipe is not None
    quantize(model, recipe, graph)
    return model


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    # Optimised, weights behind a DequantizeLinear would be multiplied by activations that are rounded to 8 bits.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def decoder_inputs(model: ir.Model, past: int, tokens: int) -> dict[str, np.ndarray]:
    random, free = np.random.default_rng(0), {"tokens": tokens, "capacity": 64}
    found = {}
    for value in model.graph.inputs:
        shape = [axis if isinstance(axis, int) else free[str(axis)] for axis in value.shape]  # type: ignore[union-attr]
        found[str(value.name)] = random.normal(size=shape).astype(np.float32)
    found["positions"] = np.tile(np.arange(past, past + tokens), (3, 1))
    found["past_length"] = np.array([past])
    return found


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_the_decoder_gives_the_quantized_graph_s_numbers(exports: Exports, precision: str) -> None:
    model = quantized(exports, "decoder", precision)
    inputs = decoder_inputs(model, past=3, tokens=9)
    wanted = run(model, inputs)["hidden_post_norm"]
    lowered = cuda.lower(model)
    counts = Counter(node.op_type for node in lowered.graph)
    assert counts["MatMulNBits"] == 5 * LAYERS  # q, k and v are one
    assert counts["MatMul"] == counts["DequantizeLinear"] == 0
    np.testing.assert_allclose(run(lowered, inputs)["hidden_post_norm"], wanted, atol=2e-5)


@pytest.mark.parametrize(("precision", "block"), [("int8-weights", 128), ("int4", 32)])
def test_blocks_are_the_recipe_s_and_a_channel_repeats_its_scale(exports: Exports, precision: str, block: int) -> None:
    for graph in ("decoder", "head"):
        for node in cuda.lower(quantized(exports, graph, precision)).graph:
            if node.op_type == "MatMulNBits":
                assert node.attributes["block_size"].as_int() == block


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_head_and_table_give_the_quantized_graph_s_numbers(exports: Exports, precision: str) -> None:
    hidden = np.random.default_rng(2).normal(size=(1, 1, 48)).astype(np.float32)
    for graph, feeds in (("head", {"hidden": hidden}), ("embed", {"ids": np.array([[3, 0, 11]])})):
        model = quantized(exports, graph, precision)
        names = [str(value.name) for value in model.graph.inputs]
        inputs = dict(zip(names, feeds.values(), strict=True))
        ((_, wanted),) = run(model, inputs).items()
        ((_, found),) = run(cuda.lower(model), inputs).items()
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("precision", ["int8-weights", "int4", "fp8"])
def test_vision_stays_as_the_checkpoint_has_it(exports: Exports, precision: str) -> None:
    """Of thousands of rows a product reads its weights once either way: rounding would cost answers alone."""
    checkpoint = Checkpoint.open(exports.checkpoint())
    recipe = uniform(checkpoint, "fp8") if precision == "fp8" else default_recipe(checkpoint, precision)
    assert recipe is not None and recipe.graphs["vision"].linears
    adapted = TARGETS["cuda"].adapt(recipe)
    assert "vision" not in adapted.graphs
    assert {name for name in adapted.graphs if adapted.graphs[name].linears} == set(recipe.graphs) - {"vision"}


def test_fp8_is_left_to_matrices_whose_inputs_are_rounded(exports: Exports) -> None:
    """Of the others 8-bit integers are nearer, and as large."""
    recipe = TARGETS["cuda"].adapt(uniform(Checkpoint.open(exports.checkpoint()), "fp8"))
    schemes = {name: linear.scheme for graph in recipe.graphs.values() for name, linear in graph.linears.items()}
    assert {name for name, scheme in schemes.items() if scheme == "fp8"} == {
        name for name in schemes if ".mlp." in name
    }
    assert schemes["lm_head.weight"] == "int8-weights"
    assert all(linear.input_scale is None for linear in recipe.graphs["head"].linears.values())


def test_what_was_folded_for_inputs_that_stay_floats_is_not(exports: Exports) -> None:
    prefix = "model.language_model.layers.0"
    kept, dropped = (
        Fold(
            f"{prefix}.{norm}.weight", 0, tuple(f"{prefix}.{name}_proj.weight" for name in readers), 64, 1, (2.0,) * 64
        )
        for norm, readers in (
            ("post_attention_layernorm", ("mlp.gate", "mlp.up")),
            ("input_layernorm", ("self_attn.q", "self_attn.k", "self_attn.v")),
        )
    )
    recipe = uniform(Checkpoint.open(exports.checkpoint()), "fp8", folds=(kept, dropped))
    assert TARGETS["cuda"].adapt(recipe).folds == (kept,)
    assert TARGETS["cpu"].adapt(recipe) == recipe


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_a_tied_head_and_table_are_stored_once(exports: Exports, tmp_path: Path, precision: str) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint("grouped-3-tied"))
    manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportPlan("cuda", precision), Silence())
    assert "embed.onnx.data" in manifest.files and "head.onnx.data" not in manifest.files


def fp8(exports: Exports, graph: str) -> ir.Model:
    model = external_data.load_to_model(ir.load(exports.portable(graph)))
    quantize(model, uniform(Checkpoint.open(exports.checkpoint()), "fp8"), graph)
    return model


def numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


@pytest.mark.parametrize("graph", ["decoder", "head"])
def test_fp8_weights_are_multiplied_as_they_are_and_activations_stay_whole(exports: Exports, graph: str) -> None:
    model = fp8(exports, graph)
    wanted = {}
    for linear in find_quantized_linears(model):
        weight = numbers(linear.weight) if linear.input_axis == 1 else numbers(linear.weight).T
        wanted[linear.name] = weight * numbers(linear.scale)[:, None]
    nodes = list(cuda.lower(model).graph)
    counts = Counter(node.op_type for node in nodes)
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == counts["MatMul"] == counts["Gemm"] == 0
    assert counts["MatMulBlockQuantizedFp8Weight"] == (5 * LAYERS if graph == "decoder" else 1)
    whole = {name: weight for name, weight in wanted.items() if not name.endswith(("q_proj", "k_proj", "v_proj"))}
    for node in nodes:
        if node.op_type == "MatMulBlockQuantizedFp8Weight":
            _, weight, scale = node.inputs
            found = numbers(weight) * numbers(scale)
            name = node.name.removesuffix("/MatMulBlockQuantizedFp8Weight") if node.name else ""
            stem, dot, last = name.rpartition(".")
            side_by_side = [wanted[f"{stem}{dot}{part}"] for part in last.split("+")]
            np.testing.assert_array_equal(found, np.concatenate(side_by_side))
            whole.pop(name, None)
    assert not whole


def test_long_fp8_channels_repeat_their_scale(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shares the sum of a channel among its warps by blocks."""
    monkeypatch.setattr(cuda_quantized, "LONGEST_FP8_BLOCK", 16)
    monkeypatch.setattr(cuda_quantized, "CHANNEL_BLOCK", 32)
    (node,) = (n for n in cuda.lower(fp8(exports, "head")).graph if n.op_type == "MatMulBlockQuantizedFp8Weight")
    assert node.attributes["block_size"].as_int() == 32
    scales = numbers(node.inputs[2])
    assert scales.shape[1] == 2  # 48 inputs
    np.testing.assert_array_equal(scales[:, 0], scales[:, 1])


def test_integer_activations_are_refused(exports: Exports) -> None:
    model = external_data.load_to_model(ir.load(exports.portable("decoder")))
    quantize(model, uniform(Checkpoint.open(exports.checkpoint()), "int8"), "decoder")
    with pytest.raises(ValueError, match="rounds its activations to integers"):
        cuda.lower(model)


def test_an_fp8_bundle_for_cuda_is_half_a_bfloat16_one(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    plan = ExportPlan("cuda", "fp8", recipe=uniform(checkpoint, "fp8"))
    manifest = export_bundle(checkpoint, tmp_path / "fp8", plan, Silence())
    whole = export_bundle(checkpoint, tmp_path / "bf16", ExportPlan("cuda", "bf16"), Silence())
    assert manifest.activation == "bfloat16"
    sizes = [entries["head.onnx.data"].size for entries in (manifest.files, whole.files)]
    assert sizes[0] == pytest.approx(sizes[1] * 130 / 96, rel=0.02)  # 48 numbers fill a block of 128 with its scale


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_a_bundle_computes_in_bfloat16_and_has_each_weight_once(
    exports: Exports, tmp_path: Path, precision: str
) -> None:  # fmt: skip
    checkpoint = Checkpoint.open(exports.checkpoint())
    manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportPlan("cuda", precision), Silence())
    assert manifest.activation == "bfloat16"
    stored = ir.load(tmp_path / "bundle" / "decoder.onnx").graph.initializers
    matrices = [name for name, value in stored.items() if value.shape is not None and len(value.shape) > 1]
    assert len([name for name in matrices if name.endswith("_quantized_packed")]) == 5 * LAYERS
    assert not [name for name in matrices if name.endswith((".weight", "_quantized"))]
