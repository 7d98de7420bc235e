from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports
from reflectrt.runtime.vision import vision_layout

NAMES = ["small", "grouped-7"]
Arrays = dict[str, np.ndarray]


def counts(file: Path) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}".removeprefix("::") for node in ir.load(file).graph)


def run(file: Path, inputs: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def size(file: Path, name: str) -> tuple[int, ...]:
    """The fixed sizes of an input; 0 where it is free."""
    (value,) = (value for value in ir.load(file).graph.inputs if value.name == name)
    assert value.shape is not None
    return tuple(axis if isinstance(axis, int) else 0 for axis in value.shape)


@pytest.mark.parametrize(("name", "layers"), [("small", 2), ("grouped-7", 1)])
def test_every_layer_of_the_decoder_is_fused(exports: Exports, name: str, layers: int) -> None:
    found = counts(exports.bundle(name) / "decoder.onnx")
    assert found["com.microsoft::GroupQueryAttention"] == layers
    assert found["com.microsoft::SkipSimplifiedLayerNormalization"] == 2 * layers
    assert found["RMSNormalization"] == 1  # nothing is added before the first
    assert found["RotaryEmbedding"] == 2 * layers
    assert found["Attention"] == found["TensorScatter"] == found["Range"] == found["LessOrEqual"] == 0


def test_blocks_with_full_attention_are_fused_and_windowed_ones_are_not(exports: Exports) -> None:
    found = counts(exports.bundle() / "vision.onnx")  # three blocks, the second with full attention
    assert found["com.microsoft::MultiHeadAttention"] == 1
    assert found["Attention"] == 2
    assert found["com.microsoft::SkipSimplifiedLayerNormalization"] == 2 * 3


@pytest.mark.parametrize("graph", ["embed", "head"])
def test_graphs_without_layers_stay_as_they_are(exports: Exports, graph: str) -> None:
    assert counts(exports.bundle() / f"{graph}.onnx") == counts(exports.portable(graph))


def decoder_inputs(file: Path, past: int, tokens: int, capacity: int) -> Arrays:
    random = np.random.default_rng(past + tokens)
    hidden = size(file, "embeddings")[2]
    positions = np.sort(random.integers(0, 300, (3, tokens)), axis=1)
    inputs: Arrays = {
        "embeddings": random.normal(size=(1, tokens, hidden)).astype(np.float32),
        "positions": positions,
        "past_length": np.array([past]),
    }
    for value in ir.load(file).graph.inputs[3:]:
        _, heads, _, head_dim = size(file, str(value.name))
        inputs[str(value.name)] = random.normal(size=(1, heads, capacity, head_dim)).astype(np.float32)
    return inputs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (0, 7), (5, 1), (100, 1), (3, 60), (127, 1), (90, 38)])
def test_the_decoder_gives_the_portable_graph_s_numbers(exports: Exports, name: str, past: int, tokens: int) -> None:
    portable, lowered = exports.portable("decoder", name), exports.bundle(name) / "decoder.onnx"
    inputs = decoder_inputs(portable, past, tokens, capacity=128)
    wanted, found = run(portable, inputs), run(lowered, inputs)
    np.testing.assert_allclose(found.pop("hidden_post_norm"), wanted.pop("hidden_post_norm"), atol=2e-5)
    for output, cache in found.items():
        np.testing.assert_allclose(cache[:, :, : past + tokens], wanted[output][:, :, : past + tokens], atol=1e-5)


@pytest.mark.parametrize(("grids", "height", "width"), [(1, 8, 8), (3, 4, 6), (1, 10, 14), (2, 18, 6), (1, 2, 40)])
def test_vision_gives_the_portable_graph_s_numbers(exports: Exports, grids: int, height: int, width: int) -> None:
    layout = vision_layout(height, width, 2, 8)
    random = np.random.default_rng(height)
    inputs = {
        "patches": random.integers(0, 256, (grids, height * width, 1176), dtype=np.uint8),
        "patch_positions": layout.positions,
        "windows": layout.windows,
        "window_slots": layout.slots,
    }
    wanted = run(exports.portable("vision"), inputs)["embeddings"]
    found = run(exports.bundle() / "vision.onnx", inputs)["embeddings"]
    assert found.shape == (grids, height * width // 4, size(exports.portable("decoder"), "embeddings")[2])
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_what_lies_behind_the_filled_rows_does_not_count(exports: Exports) -> None:
    lowered = exports.bundle() / "decoder.onnx"
    inputs = decoder_inputs(lowered, past=5, tokens=3, capacity=32)
    before = run(lowered, inputs)["hidden_post_norm"]
    for name in inputs:
        if "_cache." in name:
            inputs[name][:, :, 8:] = 1e6
    np.testing.assert_array_equal(run(lowered, inputs)["hidden_post_norm"], before)
