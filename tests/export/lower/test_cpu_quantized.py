from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower import cpu
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.recipe import Recipe

LAYERS = 2


@pytest.fixture
def recipe(exports: Exports) -> Recipe:
    return uniform(Checkpoint.open(exports.checkpoint()), "int8", scale=0.06)


def quantized(exports: Exports, graph: str, recipe: Recipe) -> ir.Model:
    model = external_data.load_to_model(ir.load(exports.portable(graph)))
    quantize(model, recipe, graph)
    return model


def run(model: ir.Model, file: Path, tokens: int = 9) -> list[np.ndarray]:
    """Outputs on fixed inputs; nothing is fused that the file does not say."""
    ir.save(model, file)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    random, feeds = np.random.default_rng(0), {}
    for port in session.get_inputs():
        shape = [{"tokens": tokens, "capacity": 16}.get(axis, axis) for axis in port.shape]
        integer = port.type == "tensor(int64)"
        feeds[port.name] = np.zeros(shape, np.int64) if integer else random.standard_normal(shape).astype(np.float32)
        if port.name == "positions":
            feeds[port.name] += np.arange(tokens)
    return list(session.run(None, feeds))


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_the_decoder_s_integer_products_share_one_rounding_and_hold_their_bias(
    exports: Exports, recipe: Recipe
) -> None:
    model = cpu.lower(quantized(exports, "decoder", recipe))
    found = counts(model)
    assert found["MatMulIntegerToFloat"] == 7 * LAYERS
    assert found["QuantizeLinear"] == 4 * LAYERS  # q, k and v share one, gate and up another
    assert found["DequantizeLinear"] == found["MatMul"] == found["Add"] - 2 == 0  # two of the attention's lengths
    assert found["GroupQueryAttention"] == LAYERS and found["SkipSimplifiedLayerNormalization"] == 2 * LAYERS


def test_the_decoder_gives_the_quantized_portable_graph_s_numbers(
    exports: Exports, recipe: Recipe, tmp_path: Path
) -> None:
    wanted = run(quantized(exports, "decoder", recipe), tmp_path / "portable.onnx")[0]
    found = run(cpu.lower(quantized(exports, "decoder", recipe)), tmp_path / "lowered.onnx")[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("graph", ["vision", "decoder", "head"])
def test_outputs_keep_their_names(exports: Exports, recipe: Recipe, graph: str) -> None:
    before = ir.load(exports.portable(graph)).graph.outputs
    after = cpu.lower(quantized(exports, graph, recipe)).graph.outputs
    assert [value.name for value in after] == [value.name for value in before]


def run_embed(model: ir.Model, file: Path) -> np.ndarray:
    ir.save(model, file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"token_ids": np.array([[0, 5, 17, 300]])})[0])


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_weights_alone_are_multiplied_by_blocks(exports: Exports, precision: str, tmp_path: Path) -> None:
    recipe = default_recipe(Checkpoint.open(exports.checkpoint()), precision)
    assert recipe is not None
    lowered = cpu.lower(quantized(exports, "decoder", recipe))
    assert counts(lowered)["MatMulNBits"] == 7 * LAYERS
    assert not any(node.op_type in ("DequantizeLinear", "MatMul") for node in lowered.graph)
    wanted = run(quantized(exports, "decoder", recipe), tmp_path / "portable.onnx")[0]
    found = run(lowered, tmp_path / "lowered.onnx")[0]
    # The kernel rounds activations to 8 bits by block.
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_a_quantized_table_gives_the_portable_rows(exports: Exports, precision: str, tmp_path: Path) -> None:
    recipe = default_recipe(Checkpoint.open(exports.checkpoint()), precision)
    assert recipe is not None
    lowered = cpu.lower(quantized(exports, "embed", recipe))
    assert counts(lowered)["GatherBlockQuantized"] == 1
    wanted = run_embed(quantized(exports, "embed", recipe), tmp_path / "portable.onnx")
    np.testing.assert_allclose(run_embed(lowered, tmp_path / "lowered.onnx"), wanted, atol=1e-6)


@pytest.mark.parametrize("scheme", ["int8", "int8-weights"])
def test_the_head_multiplies_integers_without_transposing_its_table(
    exports: Exports, scheme: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    recipe = uniform(checkpoint, "int8", scale=0.03) if scheme == "int8" else default_recipe(checkpoint, scheme)
    assert recipe is not None
    lowered = cpu.lower(quantized(exports, "head", recipe))
    assert counts(lowered)["MatMulNBits"] == 1 and "Gemm" not in counts(lowered)
    wanted = run(quantized(exports, "head", recipe), tmp_path / "portable.onnx")[0]
    found = run(lowered, tmp_path / "lowered.onnx")[0]
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)
