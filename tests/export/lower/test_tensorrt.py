"""What TensorRT is given is right: ONNX Runtime runs it in exactly that form beside the portable graph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports
from recipes import uniform
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower.tensorrt import lower
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.runtime.vision import vision_layout

NAME = "grouped-3-tied"  # 6 heads over 2
PRECISIONS = ["fp32", "int8", "fp8", "int4"]
Arrays = dict[str, Any]


def pair(
    exports: Exports, graph: str, precision: str, folder: Path, name: str = NAME
) -> tuple[ort.InferenceSession, ...]:
    """The portable graph, quantized, before its lowering and after."""
    checkpoint = Checkpoint.open(exports.checkpoint(name))
    sessions = []
    for step in (None, lower):
        model = ir.load(exports.portable(graph, name))
        recipe = (
            uniform(checkpoint, precision) if precision in ("int8", "fp8") else default_recipe(checkpoint, precision)
        )
        if recipe:
            quantize(model, recipe, graph)
        file = folder / f"{step is None}.onnx"
        ir.save(step(model) if step else model, file, external_data=f"{file.name}.data")
        sessions.append(ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]))
    return tuple(sessions)


@dataclass
class Stream:
    """A decoder with its caches, fed run by run."""

    session: ort.InferenceSession
    caches: Arrays
    length: int = 0

    def feed(self, embeddings: Any) -> Any:
        tokens = embeddings.shape[1]
        positions = np.tile(np.arange(self.length, self.length + tokens), (3, 1))
        past = np.array([self.length], np.int64)
        inputs = {"embeddings": embeddings, "positions": positions, "past_length": past, **self.caches}
        hidden, *caches = self.session.run(None, inputs)
        self.caches = dict(zip(self.caches, caches, strict=True))
        self.length += tokens
        return hidden


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_decoder_agrees_in_chunks_and_steps(exports: Exports, tmp_path: Path, precision: str) -> None:
    streams = []
    for session in pair(exports, "decoder", precision, tmp_path):
        shape = (1, 2, 64, 16)
        names = [port.name for port in session.get_inputs() if "_cache." in port.name]
        streams.append(Stream(session, {name: np.zeros(shape, np.float32) for name in names}))
    random = np.random.default_rng(3)
    for tokens in (17, 1, 1, 5, 1):
        embeddings = random.standard_normal((1, tokens, 96)).astype(np.float32)
        portable, lowered = (stream.feed(embeddings) for stream in streams)
        np.testing.assert_allclose(lowered, portable, atol=2e-5)
    for name in streams[0].caches:
        np.testing.assert_allclose(streams[1].caches[name], streams[0].caches[name], atol=2e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vision_agrees_with_cut_windows(exports: Exports, tmp_path: Path, precision: str) -> None:
    portable, lowered = pair(exports, "vision", precision, tmp_path)
    patches = np.random.default_rng(4).integers(0, 256, (2, 10 * 14, 1176), np.uint8)
    layout = vision_layout(10, 14, 2, 8)
    inputs = {
        "patches": patches,
        "patch_positions": layout.positions,
        "windows": layout.windows,
        "window_slots": layout.slots,
    }
    np.testing.assert_allclose(lowered.run(None, inputs)[0], portable.run(None, inputs)[0], atol=2e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embed_and_head_agree(exports: Exports, tmp_path: Path, precision: str) -> None:
    ids = np.array([[3, 0, 511]], np.int64)
    hidden = np.random.default_rng(5).standard_normal((1, 3, 96)).astype(np.float32)
    for graph, inputs in (("embed", {"token_ids": ids}), ("head", {"hidden_post_norm": hidden})):
        (tmp_path / graph).mkdir()
        portable, lowered = pair(exports, graph, precision, tmp_path / graph)
        np.testing.assert_allclose(lowered.run(None, inputs)[0], portable.run(None, inputs)[0], atol=2e-5)


@pytest.mark.parametrize("name", ["linear-head", "mlp-head"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_reflection_heads_agree(exports: Exports, tmp_path: Path, name: str, precision: str) -> None:
    portable, lowered = pair(exports, "reflect", precision, tmp_path, name)
    width = portable.get_inputs()[0].shape[-1]
    hidden = np.random.default_rng(6).standard_normal((1, 1, width)).astype(np.float32)
    inputs = {"hidden_post_norm": hidden}
    np.testing.assert_allclose(lowered.run(None, inputs)[0], portable.run(None, inputs)[0], atol=2e-5)


def test_queries_of_a_group_are_rows_of_its_key_value_head(exports: Exports) -> None:
    model = lower(ir.load(exports.portable("decoder", NAME)))
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == 3
    assert {node.inputs[0].producer().op_type for node in attentions} == {"Reshape"}  # type: ignore[union-attr]
    assert len({node.inputs[3].name for node in attentions}) == 1  # type: ignore[union-attr]  # one mask for all layers
    assert {node.domain for node in model.graph} == {""}


def test_a_single_key_value_head_stays_as_it_is(exports: Exports) -> None:
    model = lower(ir.load(exports.portable("decoder")))
    assert not any("grouped" in str(node.name) or node.op_type == "Tile" for node in model.graph)


def test_blocks_are_filled_where_they_do_not_fill_their_axis(exports: Exports) -> None:
    """1,176 values of a patch are 36.75 blocks of 32."""
    model = ir.load(exports.portable("vision", NAME))
    quantize(model, default_recipe(Checkpoint.open(exports.checkpoint(NAME)), "int4"), "vision")  # type: ignore[arg-type]
    lower(model)
    for node in model.graph:
        block = node.attributes.get_int("block_size", 0) if node.op_type == "DequantizeLinear" else 0
        if block:
            axis = node.attributes.get_int("axis", 0)
            assert node.inputs[0].shape[axis] % block == 0  # type: ignore[union-attr,index,operator]
