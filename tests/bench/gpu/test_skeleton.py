"""Skeletons: a small shape, whose bundle opens like any other and has a place for every weight."""

from math import prod
from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch
from exports import Exports
from reflectrt.bench.gpu.skeleton import write_skeleton
from reflectrt.bench.gpu.weights import FP8, Blocks, draw, places
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.runtime import manifest as manifests
from reflectrt.runtime.contract import cache_names
from reflectrt.runtime.errors import ExportError


@pytest.mark.parametrize(("kind", "stored"), [("int8", "int8"), ("fp8", "float8e4m3fn")])
def test_a_cache_in_8_bits_is_in_graph_and_manifest(
    exports: Exports, tmp_path: Path, kind: Literal["int8", "fp8"], stored: str
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "int4", kind, checkpoint.text, checkpoint.vision)
    manifest = manifests.parse((folder / manifests.FILE_NAME).read_text())
    assert manifest.model.cache_dtype == stored
    ports = {port.name: port.dtype for port in manifest.graphs["decoder"].inputs}
    caches = cache_names(checkpoint.text.layers)
    assert {ports[name] for name in caches} == {stored}
    decoder = onnx.load(folder / "decoder.onnx", load_external_data=False)
    inside = {w.name for w in decoder.graph.initializer if w.data_location != onnx.TensorProto.EXTERNAL}
    assert {f"{name}_scale" for name in caches} <= inside  # the weights are drawn, a cache's scales are not
    drawn = {place.name for place in places(folder)}
    assert drawn and not drawn & inside


def test_fp8_weights_have_their_places_and_scales(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "fp8", None, checkpoint.text, checkpoint.vision)
    found = {place.name: place for place in places(folder)}
    weight = found["lm_head.weight_quantized_packed"]
    assert (weight.dtype, weight.shape) == (torch.float8_e4m3fn, (checkpoint.text.vocab, checkpoint.text.hidden))
    assert found["lm_head.weight_scale_packed"].blocks == Blocks(FP8, checkpoint.text.hidden)
    up = "model.language_model.layers.0.mlp.up_proj.weight"
    assert found[f"{up}_quantized_packed"].file == "decoder_shared.data"
    steps = [found[f"{up}_step"], found[f"{up}_scale_packed"]]
    assert steps[0].blocks == Blocks(FP8, checkpoint.text.hidden)
    for step in steps:
        assert draw(step, "cpu").flatten().tolist() == pytest.approx([checkpoint.text.hidden**-0.5] * prod(step.shape))


def test_a_float_precision_has_no_small_cache(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    with pytest.raises(ExportError, match="a float precision has no recipe"):
        write_skeleton(tmp_path / "skeleton", "bf16", "int8", checkpoint.text, checkpoint.vision)
