from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports, Silence
from onnx_ir import external_data
from recipes import uniform
from reflectrt.commands.describe import describe
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.linears import find_linears
from reflectrt.export.recipe import EIGHT_BITS, Fold, GraphRecipe, KVCacheRecipe, LinearRecipe, Recipe
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.errors import ExportError

LAYER = "model.language_model.layers.0."


@pytest.fixture
def decoder(exports: Exports) -> ir.Model:
    return portable(exports)


def portable(exports: Exports) -> ir.Model:
    return external_data.load_to_model(ir.load(exports.portable("decoder")))


@pytest.fixture
def recipe(exports: Exports) -> Recipe:
    return uniform(Checkpoint.open(exports.checkpoint()), "int8")


def run(model: ir.Model, folder: Path) -> dict[str, np.ndarray]:
    """A portable decoder's outputs on fixed inputs."""
    ir.save(model, folder / "graph.onnx")
    session = ort.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {}
    for port in session.get_inputs():
        shape = [{"tokens": 5, "capacity": 8}.get(axis, axis) for axis in port.shape]
        if port.type == "tensor(int64)":
            feeds[port.name] = np.zeros(shape, np.int64) + (np.arange(5) if "positions" in port.name else 0)
        else:
            feeds[port.name] = random.standard_normal(shape).astype(np.float32)
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))


def test_every_linear_reads_rounded_inputs_and_integer_weights(decoder: ir.Model, recipe: Recipe) -> None:
    before = find_linears(decoder)
    quantize(decoder, recipe, "decoder")
    nodes = {linear.node.name for linear in before.values()}
    for node in decoder.graph:
        if node.name in nodes:
            assert [value.producer().op_type for value in node.inputs[:2] if value] == ["DequantizeLinear"] * 2
    for name in before:
        assert name not in decoder.graph.initializers
        assert decoder.graph.initializers[f"{name}_quantized"].dtype == ir.DataType.INT8


def test_what_reads_one_value_shares_its_rounding(decoder: ir.Model, recipe: Recipe) -> None:
    quantize(decoder, recipe, "decoder")
    count = sum(node.op_type == "QuantizeLinear" for node in decoder.graph)
    assert count == 2 * 4  # two layers: q, k and v share one, o, gate and up share one, down


def test_weights_are_rounded_to_the_nearest_of_255_steps(decoder: ir.Model, recipe: Recipe) -> None:
    name = f"{LAYER}mlp.up_proj.weight"
    weight = decoder.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
    quantize(decoder, recipe, "decoder")
    stored = decoder.graph.initializers[f"{name}_quantized"].const_value.numpy()  # type: ignore[union-attr]
    scale = decoder.graph.initializers[f"{name}_scale"].const_value.numpy()  # type: ignore[union-attr]
    assert (scale >= np.abs(weight).max(axis=0) / 127).all() and (scale <= np.abs(weight).max(axis=0) / 63).all()
    assert np.abs(stored * scale - weight).max() <= scale.max() / 2 * 1.0001
    assert stored.min() >= -127


def test_no_pair_of_int8_weights_saturates_16_bits_whatever_the_activation(decoder: ir.Model, recipe: Recipe) -> None:
    quantize(decoder, recipe, "decoder")
    for name in recipe.graph("decoder").linears:
        stored = decoder.graph.initializers[f"{name}_quantized"].const_value.numpy()  # type: ignore[union-attr]
        positive, negative = np.maximum(stored, 0).astype(int), np.minimum(stored, 0).astype(int)
        assert 255 * (positive[::2] + positive[1::2]).max() <= np.iinfo(np.int16).max
        assert 255 * (negative[::2] + negative[1::2]).min() >= np.iinfo(np.int16).min


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_the_quantized_decoder_stays_near_the_float_one(
    exports: Exports, decoder: ir.Model, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "float").mkdir()
    wanted = run(portable(exports), tmp_path / "float")["hidden_post_norm"]
    quantize(decoder, uniform(Checkpoint.open(exports.checkpoint()), scheme, 0.03), "decoder")
    found = run(decoder, tmp_path)["hidden_post_norm"]
    difference = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0 < difference < 0.1


FOLDS = (
    Fold(f"{LAYER}input_layernorm.weight", 0, tuple(f"{LAYER}self_attn.{n}_proj.weight" for n in "qkv"), 48, 1, ()),
    Fold(f"{LAYER}self_attn.v_proj.weight", 0, (f"{LAYER}self_attn.o_proj.weight",), 16, 3, ()),
    Fold(f"{LAYER}mlp.up_proj.weight", 0, (f"{LAYER}mlp.down_proj.weight",), 0, 1, ()),
)


def test_folds_change_no_result(exports: Exports, decoder: ir.Model, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "float").mkdir()
    wanted = run(portable(exports), tmp_path / "float")["hidden_post_norm"]
    random = np.random.default_rng(1)
    folds = []
    for fold in FOLDS:
        shape = decoder.graph.initializers[fold.source].shape
        assert shape is not None
        factors = tuple(map(float, 10 ** random.uniform(-2, 2, shape.numpy()[-1])))
        folds.append(replace(fold, width=fold.width or len(factors), factors=factors))
    quantize(decoder, replace(recipe, graphs={}, folds=tuple(folds)), "decoder")
    found = run(decoder, tmp_path)["hidden_post_norm"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_fold_of_another_shape_is_refused(decoder: ir.Model, recipe: Recipe) -> None:
    fold = replace(FOLDS[0], width=3, factors=(1.0, 1.0, 1.0))
    with pytest.raises(ExportError, match=r"folds 3 channels into .*q_proj.weight, which has 48"):
        quantize(decoder, replace(recipe, folds=(fold,)), "decoder")


def test_a_linear_that_is_not_there_is_named(decoder: ir.Model, recipe: Recipe) -> None:
    strange = {"decoder": GraphRecipe({"layers.9.weight": LinearRecipe("int8", 0.1)})}
    with pytest.raises(ExportError, match=r"layers\.9\.weight, which decoder lacks"):
        quantize(decoder, replace(recipe, graphs=strange), "decoder")


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        ("int8", {"checkpoint": "ab" * 32}, "another checkpoint"),
        ("fp8", {}, "the recipe is for int8; pass --precision int8"),
        ("int8", {"kv_cache": KVCacheRecipe("int8", ((1.0,),), ((1.0,),))}, "cache scales for 1 layers"),
    ],
)
def test_a_recipe_that_does_not_belong_is_refused(
    exports: Exports, recipe: Recipe, tmp_path: Path, precision: str, change: dict[str, object], message: str
) -> None:
    plan = ExportPlan(precision=precision, recipe=replace(recipe, **change))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=message):
        export_bundle(Checkpoint.open(exports.checkpoint()), tmp_path / "bundle", plan, Silence())


def test_a_target_without_a_quantized_cache_refuses_one(exports: Exports, recipe: Recipe, tmp_path: Path) -> None:
    cached = replace(recipe, kv_cache=KVCacheRecipe("int8", ((1.0,),), ((1.0,),)))
    plan = ExportPlan("tensorrt", "int8", recipe=cached)
    with pytest.raises(ExportError, match="does not quantize the KV cache yet; calibrate without --kv-cache"):
        export_bundle(Checkpoint.open(exports.checkpoint()), tmp_path / "bundle", plan, Silence())


def test_a_target_without_8_bit_weights_alone_leaves_such_layers_as_they_are(
    exports: Exports, recipe: Recipe, tmp_path: Path
) -> None:
    wide = f"{LAYER}mlp.up_proj.weight"
    decoder = GraphRecipe(recipe.graph("decoder").linears | {wide: EIGHT_BITS})
    plan = ExportPlan("tensorrt", "int8", recipe=replace(recipe, graphs={**recipe.graphs, "decoder": decoder}))
    manifest = export_bundle(Checkpoint.open(exports.checkpoint()), tmp_path / "bundle", plan, Silence())
    assert manifest.recipe is not None
    assert manifest.recipe["graphs"]["decoder"]["linears"].keys() == decoder.linears.keys() - {wide}


def test_a_quantized_bundle_says_how_it_was_quantized(exports: Exports, recipe: Recipe, tmp_path: Path) -> None:
    plan = ExportPlan(precision="int8", recipe=recipe)
    export_bundle(Checkpoint.open(exports.checkpoint()), tmp_path / "bundle", plan, Silence())
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.precision, manifest.activation) == ("int8", "float32")
    assert manifest.recipe is not None
    assert manifest.recipe["graphs"]["decoder"]["schemes"] == {"int8": 14}
    assert any("minmax over 8 samples, smoothing 0.5" in line for line in describe(manifest, ""))
