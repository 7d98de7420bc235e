from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports, Silence
from onnx.reference import ReferenceEvaluator
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower import cpu, cuda
from reflectrt.export.quantize.kv_cache import quantize_cache
from reflectrt.export.recipe import KVCacheRecipe
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import cache_names, cache_output
from reflectrt.runtime.engines.onnxruntime import OrtCpuEngine
from reflectrt.runtime.errors import ExportError
from reflectrt.runtime.memory import cache_bytes
from reflectrt.runtime.stream import Stream

Arrays = dict[str, np.ndarray]

LIMITS = {"int8": 127, "fp8": 448}
LAYERS, HEADS, WIDTH, ROWS, PAST = 2, 1, 16, 32, 20


@pytest.fixture
def decoder(exports: Exports) -> ir.Model:
    return external_data.load_to_model(ir.load(exports.portable("decoder")))


def recipe(
    kind: Literal["int8", "fp8"] = "int8", channels: int = HEADS * WIDTH, layers: int = LAYERS, smallest: float = 0.02
) -> KVCacheRecipe:
    """Another scale for every channel; fp8's numbers reach further, so its scales are smaller."""
    smallest, step = (smallest, 0.002) if kind == "int8" else (smallest * LIMITS["int8"] / LIMITS["fp8"], 0.0005)
    rows = tuple(tuple((smallest + step * np.arange(channels) + 0.01 * layer).tolist()) for layer in range(layers))
    return KVCacheRecipe(kind, rows, rows)


def feeds(model: ir.Model, tokens: int, scales: KVCacheRecipe) -> Arrays:
    """Random inputs over the same filled rows for every type of cache, floats where `scales` are used up already."""
    random, found = np.random.default_rng(tokens), {}
    by_name = {f"{kind}_cache.{i}": s for kind in ("key", "value") for i, s in enumerate(scales.key_scales)}
    for port in model.graph.inputs:
        name, axes, dtype = str(port.name), list(port.shape or ()), port.dtype or ir.DataType.FLOAT
        free = {"tokens": tokens, "capacity": ROWS}
        numbers = random.standard_normal([axis if isinstance(axis, int) else free[str(axis)] for axis in axes])
        if name == "positions":
            numbers = np.zeros(numbers.shape) + PAST + np.arange(tokens)
        elif name == "past_length":
            numbers = np.array([PAST])
        elif name in by_name and scales.type == "int8" and dtype == ir.DataType.INT8:
            numbers = np.clip(np.rint(numbers / np.array(by_name[name])), -127, 127)
        elif name in by_name and scales.type == "fp8":
            stored = np.clip(numbers / np.array(by_name[name]), -448, 448).astype(ml_dtypes.float8_e4m3fn)
            numbers = stored if dtype == ir.DataType.FLOAT8E4M3FN else stored.astype(np.float32) * by_name[name]
        found[name] = numbers.astype(dtype.numpy())
    return found


def run(model: ir.Model, file: Path, tokens: int, scales: KVCacheRecipe) -> Arrays:
    """What ONNX Runtime's CPU provider gives."""
    ir.save(model, file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds(model, tokens, scales)), strict=True))


def evaluate(model: ir.Model, tokens: int, scales: KVCacheRecipe) -> Arrays:
    """What ONNX's own evaluator gives: ONNX Runtime has no TensorScatter of fp8."""
    names = [str(port.name) for port in model.graph.outputs]
    return dict(zip(names, ReferenceEvaluator(ir.to_proto(model)).run(None, feeds(model, tokens, scales)), strict=True))


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_portable_graph_is_near_the_float_one(
    decoder: ir.Model, tmp_path: Path, kind: Literal["int8", "fp8"], tokens: int
) -> None:
    scales = recipe(kind)
    wanted = run(decoder, tmp_path / "float.onnx", tokens, scales)["hidden_post_norm"]
    quantize_cache(decoder, scales)
    found = evaluate(decoder, tokens, scales)["hidden_post_norm"]
    assert 0 < np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("lower", [cpu.lower, cuda.lower])
def test_attention_over_int8_gives_the_portable_numbers_and_cache(
    decoder: ir.Model, tmp_path: Path, lower: Callable[[ir.Model], ir.Model], tokens: int
) -> None:
    """The CUDA lowering's too: ONNX Runtime has the same operator for both, and here it runs on the CPU."""
    quantize_cache(decoder, recipe())
    wanted = run(decoder, tmp_path / "portable.onnx", tokens, recipe())
    lowered = lower(decoder)
    found = run(lowered, tmp_path / "lowered.onnx", tokens, recipe())
    counts = Counter(node.op_type for node in lowered.graph)
    assert counts["GroupQueryAttention"] == LAYERS
    assert not counts["TensorScatter"]
    assert not counts["Round"]
    # Rounding that falls the other way moves a number of the cache by a step.
    difference = found["hidden_post_norm"] - wanted["hidden_post_norm"]
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(wanted["hidden_post_norm"])
    for name in map(cache_output, cache_names(LAYERS)):
        filled = (..., slice(PAST + tokens), slice(None))
        assert np.abs(found[name][filled].astype(int) - wanted[name][filled]).max() <= 1


@pytest.mark.parametrize("tokens", [1, 7])
def test_the_cpu_rounds_through_fp8_and_stores_floats(decoder: ir.Model, tmp_path: Path, tokens: int) -> None:
    scales = recipe("fp8")
    quantize_cache(decoder, scales)
    wanted = evaluate(decoder, tokens, scales)
    lowered = cpu.lower(decoder)
    found = run(lowered, tmp_path / "lowered.onnx", tokens, scales)
    assert Counter(node.op_type for node in lowered.graph)["GroupQueryAttention"] == LAYERS
    difference = found["hidden_post_norm"] - wanted["hidden_post_norm"]
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(wanted["hidden_post_norm"])
    for name, by_channel in zip(cache_names(LAYERS), [s for s in scales.key_scales for _ in range(2)], strict=True):
        rows = np.array(by_channel, np.float32).reshape(HEADS, 1, WIDTH)
        numbers = found[cache_output(name)][..., : PAST + tokens, :] / rows
        as_stored = wanted[cache_output(name)][..., : PAST + tokens, :].astype(np.float32)
        # All are numbers of fp8; one that falls the other way is off by a step, an eighth at most.
        np.testing.assert_allclose(numbers, numbers.astype(ml_dtypes.float8_e4m3fn).astype(np.float32), rtol=1e-5)
        np.testing.assert_allclose(numbers, as_stored, rtol=0.13, atol=0.01)
        assert np.mean(np.isclose(numbers, as_stored, rtol=1e-4)) > 0.99


def test_the_cpu_s_fp8_rows_saturate(decoder: ir.Model, tmp_path: Path) -> None:
    scales = replace(recipe("fp8"), key_scales=((1e-4,) * WIDTH,) * LAYERS)
    quantize_cache(decoder, scales)
    found = run(cpu.lower(decoder), tmp_path / "lowered.onnx", 1, scales)
    for layer in range(LAYERS):
        written = found[f"key_cache_out.{layer}"][..., PAST, :]
        assert np.isclose(np.abs(written).max(), 448e-4, rtol=1e-5)
    assert np.isfinite(found["hidden_post_norm"]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "stored"), [("int8", "INT8"), ("fp8", "FLOAT8E4M3FN")])
def test_cuda_stores_bytes_and_scales_by_channel_in_float32(
    exports: Exports, dtype: str, kind: Literal["int8", "fp8"], stored: str
) -> None:
    """What ONNX Runtime's operator asks for; no GPU has run it here."""
    model = external_data.load_to_model(ir.load(exports.portable("decoder", dtype=dtype)))
    scales = recipe(kind)
    quantize_cache(model, scales)
    model = cuda.lower(model)
    onnx.checker.check_model(ir.to_proto(model))
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == LAYERS
    ports = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for name in cache_names(LAYERS):
        for port in (ports[name], ports[cache_output(name)]):
            assert port.dtype == ir.DataType[stored]
            assert port.shape == ir.Shape([1, HEADS, "capacity", WIDTH])
    for layer, node in enumerate(nodes):
        assert [str(value.name) for value in node.inputs[3:5] if value] == cache_names(LAYERS)[2 * layer :][:2]
        assert node.outputs[1:] == (ports[f"key_cache_out.{layer}"], ports[f"value_cache_out.{layer}"])
        assert {node.attributes[name].as_string() for name in ("k_quant_type", "v_quant_type")} == {"PER_CHANNEL"}
        assert node.attributes["kv_cache_bit_width"].as_int() == 8
        for value, numbers in zip(node.inputs[12:], (scales.key_scales, scales.value_scales), strict=True):
            assert value is not None
            assert value.const_value is not None
            assert value.dtype == ir.DataType.FLOAT
            np.testing.assert_array_equal(value.const_value.numpy().ravel(), np.float32(numbers[layer]))
    assert not any(node.op_type in ("Round", "Clip", "TensorScatter") for node in model.graph)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (recipe(layers=3), "scales for 3 layers"),
        (recipe(channels=8), "8 scales for key_cache.0, not 1 x 16"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(decoder: ir.Model, wrong: KVCacheRecipe, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        quantize_cache(decoder, wrong)


@pytest.mark.parametrize(("kind", "stored", "smaller"), [("int8", "int8", 4), ("fp8", "float", 1)])
def test_a_bundle_with_a_rounded_cache_answers_like_one_without(
    exports: Exports, tmp_path: Path, kind: Literal["int8", "fp8"], stored: str, smaller: int
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    chosen = replace(uniform(checkpoint, "int8"), graphs={}, kv_cache=recipe(kind, smallest=0.05))
    export_bundle(checkpoint, tmp_path / "bundle", ExportPlan(precision="int8", recipe=chosen), Silence())
    hidden = []
    for folder in (tmp_path / "bundle", exports.bundle()):
        bundle = open_bundle(folder)
        engine = OrtCpuEngine(bundle, threads=1)
        stream = Stream(engine, bundle.manifest, capacity=64)
        hidden.append(engine.download(stream.feed_tokens(range(40))))
        stream.feed_tokens(range(400))  # the cache grows and keeps what it holds
        assert stream.cache.length == 440
    assert 0 < np.linalg.norm(hidden[0] - hidden[1]) < 0.2 * np.linalg.norm(hidden[1])
    small, large = open_bundle(tmp_path / "bundle").manifest.model, open_bundle(exports.bundle()).manifest.model
    assert small.cache_dtype == stored
    assert smaller * cache_bytes(small, 100, itemsize=4) == cache_bytes(large, 100, itemsize=4)


@pytest.mark.parametrize(("kind", "stored"), [("int8", "int8"), ("fp8", "float8e4m3fn")])
def test_a_cuda_bundle_names_its_cache_s_bytes(
    exports: Exports, tmp_path: Path, kind: Literal["int8", "fp8"], stored: str
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    chosen = replace(uniform(checkpoint, "int8-weights"), graphs={}, kv_cache=recipe(kind))
    plan = ExportPlan("cuda", "int8-weights", recipe=chosen)
    manifest = export_bundle(checkpoint, tmp_path / "bundle", plan, Silence())
    assert open_bundle(tmp_path / "bundle").manifest.model == manifest.model
    assert (manifest.model.cache_dtype, manifest.engine) == (stored, {"onnxruntime": "1.31"})
    ports = {port.name: port.dtype for port in manifest.graphs["decoder"].inputs}
    assert {ports[name] for name in cache_names(LAYERS)} == {stored}
