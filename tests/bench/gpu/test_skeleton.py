"""Skeletons: a small shape, whose bundle opens like any other and has a place for every weight."""

from math import prod
from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch
from exports import Exports
from reflectrt.bench.gpu.skeleton import write_skeleton
from reflectrt.bench.gpu.weights import FP8, Blocks, Place, draw, places, transformers_tensors
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.runtime import manifest as manifests
from reflectrt.runtime.contract import cache_names
from reflectrt.runtime.errors import ExportError
from reflectrt.runtime.manifest import GraphEntry


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
    checkpoint = Checkpoint.open(exports.checkpoint("wide-head"))
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "fp8", None, checkpoint.text, checkpoint.vision)
    found = {place.name: place for place in places(folder)}
    assert found["lm_head.weight_quantized_packed"].dtype == torch.uint8
    assert found["lm_head.weight_scale_packed"].blocks == Blocks(8, 128)
    up = "model.language_model.layers.0.mlp.up_proj.weight"
    weight = found[f"{up}_quantized_packed"]
    assert (weight.dtype, weight.shape) == (torch.float8_e4m3fn, (checkpoint.text.mlp, checkpoint.text.hidden))
    assert weight.file == "decoder_shared.data"
    assert found[f"{up}_scale_packed"].blocks == Blocks(FP8, checkpoint.text.hidden)
    step = found[f"{up}_scale_packed"]
    assert draw(step, "cpu").flatten().tolist() == pytest.approx([checkpoint.text.hidden**-0.5] * prod(step.shape))


def opened(folder: Path) -> tuple[GraphEntry, dict[str, Place]]:
    """The decoder's entry in a skeleton's manifest, and every weight's place."""
    manifest = manifests.parse((folder / manifests.FILE_NAME).read_text())
    found = {place.name: place for place in places(folder)}
    assert set(manifest.files) == {place.file for place in found.values()}
    return manifest.graphs["decoder"], found


def test_what_steps_read_is_drawn_as_inputs_of_the_decoder(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint("wide-head"))
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "bf16", None, checkpoint.text, checkpoint.vision)
    entry, found = opened(folder)
    assert entry.step_form is not None and entry.files() == ("decoder.onnx", "decoder_shared.data")
    for weight in entry.weights:
        place = found[weight.name]
        assert (place.shape, place.dtype, place.rows) == (weight.shape, torch.bfloat16, weight.name.endswith("weight"))
    down = found[entry.step_form.layers[0].down.weight]
    assert float(draw(down, "cpu").float().std()) == pytest.approx(checkpoint.text.mlp**-0.5, rel=0.05)
    text = [place for place in found.values() if "visual" not in place.name]
    state = {name: part for place in text for name, part in transformers_tensors(place, draw(place, "cpu"))}
    wanted = {name: ref.shape for name, ref in checkpoint.tensors.items() if "visual" not in name}
    wide = {name for name in wanted if "self_attn" in name}  # cut as the 7B shape's heads are
    assert state.keys() == wanted.keys()
    assert {name: part.shape for name, part in state.items() if name not in wide} == {
        name: shape for name, shape in wanted.items() if name not in wide
    }


def test_blocks_and_scales_of_steps_have_their_places(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint("wide-head"))
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "int4", "int8", checkpoint.text, checkpoint.vision)
    entry, found = opened(folder)
    assert entry.step_form is not None
    for layer in entry.step_form.layers:
        assert layer.down.scales is not None
        assert found[layer.down.scales].blocks == Blocks(4, 32)
        assert (found[layer.down.weight].dtype, found[layer.down.weight].rows) == (torch.uint8, False)
        for name in layer.cache_scales:
            assert found[name].dtype == torch.float32 and found[name].value == pytest.approx(5 / 127)


def test_the_vision_encoder_s_segments_read_the_whole_s_weights(exports: Exports, tmp_path: Path) -> None:
    """Queries, keys and values side by side are drawn as the thirds are, and the rival gets them from those alone."""
    checkpoint = Checkpoint.open(exports.checkpoint())
    folder = tmp_path / "skeleton"
    write_skeleton(folder, "bf16", None, checkpoint.text, checkpoint.vision)
    manifest = manifests.parse((folder / manifests.FILE_NAME).read_text())
    entry, drawn = manifest.graphs["vision"], list(places(folder))
    assert entry.block_form is not None and set(entry.files()) <= {file.name for file in folder.iterdir()} | {
        place.file for place in drawn
    }
    found = {(place.file, place.offset): place for place in drawn}
    assert len(found) == len(drawn) == len({place.name for place in drawn})
    for weight in entry.weights:
        place = found[weight.file, weight.offset]
        assert (place.name, place.shape, place.rows) == (weight.name, weight.shape, False)
    by_name = {place.name: place for place in drawn}
    assert {name for name, place in by_name.items() if place.file == "vision_blocks.data"} == {
        f"model.visual.blocks.{index}.attn.qkv.affine" for index in range(3)
    }
    for index, kind in ((1, ""), (2, ".half")):  # the second block has no float16
        stem = f"model.visual.blocks.{index}.attn.qkv"
        thirds = [draw(by_name[f"{stem}.{third}.affine{kind}"], "cpu").float() for third in range(3)]
        whole = draw(by_name[f"{stem}.affine"], "cpu").float()
        assert torch.allclose(whole, torch.cat(thirds, -1), rtol=2**-8, atol=1e-6)
    vision = [place for place in drawn if "visual" in place.name and "mlp." not in place.name]
    names = [name for place in vision for name, _ in transformers_tensors(place, draw(place, "cpu"))]
    assert len(set(names)) == len(names)
    assert "model.visual.blocks.1.attn.qkv.0.weight" in names and "model.visual.blocks.1.attn.qkv.weight" not in names


def test_a_float_precision_has_no_small_cache(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    with pytest.raises(ExportError, match="a float precision has no recipe"):
        write_skeleton(tmp_path / "skeleton", "bf16", "int8", checkpoint.text, checkpoint.vision)
