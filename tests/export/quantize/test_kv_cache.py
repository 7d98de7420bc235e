from collections import Counter
from dataclasses import replace
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
from reflectrt.export.lower import cpu
from reflectrt.export.quantize.kv_cache import quantize_cache
from reflectrt.export.recipe import KVCacheRecipe
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import cache_names, cache_output
from reflectrt.runtime.engines.onnxruntime import OrtCpuEngine
from reflectrt.runtime.errors import ExportError
from reflectrt.runtime.memory import cache_bytes
from reflectrt.runtime.stream import Stream

LAYERS, HEADS, WIDTH, ROWS, PAST = 2, 1, 16, 32, 20


@pytest.fixture
def decoder(exports: Exports) -> ir.Model:
    return external_data.load_to_model(ir.load(exports.portable("decoder")))


def recipe(channels: int = HEADS * WIDTH, layers: int = LAYERS, smallest: float = 0.02) -> KVCacheRecipe:
    """Another scale for every channel."""
    rows = tuple(tuple((smallest + 0.002 * np.arange(channels) + 0.01 * layer).tolist()) for layer in range(layers))
    return KVCacheRecipe("int8", rows, rows)


def run(model: ir.Model, file: Path, tokens: int) -> dict[str, np.ndarray]:
    ir.save(model, file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    random, feeds = np.random.default_rng(tokens), {}
    scales = {f"{kind}_cache.{i}": s for kind in ("key", "value") for i, s in enumerate(recipe().key_scales)}
    for port in session.get_inputs():
        shape = [{"tokens": tokens, "capacity": ROWS}.get(axis, axis) for axis in port.shape]
        numbers = random.standard_normal(shape)
        if port.name == "positions":
            numbers = np.zeros(shape) + PAST + np.arange(tokens)
        elif port.name == "past_length":
            numbers = np.array([PAST])
        elif port.type == "tensor(int8)":
            numbers = np.clip(np.rint(numbers / np.array(scales[port.name])), -127, 127)
        types = {"tensor(int64)": np.int64, "tensor(int8)": np.int8, "tensor(float)": np.float32}
        feeds[port.name] = numbers.astype(types[port.type])
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize("tokens", [1, 7])
def test_the_portable_graph_is_near_the_float_one(decoder: ir.Model, tmp_path: Path, tokens: int) -> None:
    wanted = run(decoder, tmp_path / "float.onnx", tokens)["hidden_post_norm"]
    quantize_cache(decoder, recipe())
    found = run(decoder, tmp_path / "int8.onnx", tokens)["hidden_post_norm"]
    assert 0 < np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("tokens", [1, 7])
def test_the_cpu_s_attention_gives_the_portable_numbers_and_cache(
    decoder: ir.Model, tmp_path: Path, tokens: int
) -> None:
    quantize_cache(decoder, recipe())
    wanted = run(decoder, tmp_path / "portable.onnx", tokens)
    lowered = cpu.lower(decoder)
    found = run(lowered, tmp_path / "lowered.onnx", tokens)
    counts = Counter(node.op_type for node in lowered.graph)
    assert counts["GroupQueryAttention"] == LAYERS and not counts["TensorScatter"] and not counts["Round"]
    # Rounding that falls the other way moves a number of the cache by a step.
    difference = found["hidden_post_norm"] - wanted["hidden_post_norm"]
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(wanted["hidden_post_norm"])
    for name in map(cache_output, cache_names(LAYERS)):
        filled = (..., slice(PAST + tokens), slice(None))
        assert np.abs(found[name][filled].astype(int) - wanted[name][filled]).max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (KVCacheRecipe("fp8", ((1.0,) * 16,) * 2, ((1.0,) * 16,) * 2), "fp8 is not built yet"),
        (recipe(layers=3), "scales for 3 layers"),
        (recipe(channels=8), "8 scales for key_cache.0, not 1 x 16"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(decoder: ir.Model, wrong: KVCacheRecipe, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        quantize_cache(decoder, wrong)


def test_a_bundle_with_an_int8_cache_answers_like_one_without(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    chosen = replace(uniform(checkpoint, "int8"), graphs={}, kv_cache=recipe(smallest=0.05))
    export_bundle(checkpoint, tmp_path / "bundle", ExportPlan(precision="int8", recipe=chosen), Silence())
    hidden = {}
    for folder in (tmp_path / "bundle", exports.bundle()):
        bundle = open_bundle(folder)
        engine = OrtCpuEngine(bundle, threads=1)
        stream = Stream(engine, bundle.manifest, capacity=64)
        hidden[bundle.manifest.model.cache_dtype] = engine.download(stream.feed_tokens(range(40)))
        stream.feed_tokens(range(400))  # the cache grows and keeps what it holds
        assert stream.cache.length == 440
    difference = np.linalg.norm(hidden["int8"] - hidden["float"])
    assert 0 < difference < 0.2 * np.linalg.norm(hidden["float"])
    small, large = open_bundle(tmp_path / "bundle").manifest.model, open_bundle(exports.bundle()).manifest.model
    assert 4 * cache_bytes(small, 100, itemsize=4) == cache_bytes(large, 100, itemsize=4)
