import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPES, checkpoint, make_checkpoint
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.facts import ImageBudget
from reflectrt.runtime.errors import ExportError
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


@pytest.mark.parametrize("name", SHAPES)
def test_facts_agree_with_transformers(tmp_path: Path, name: str) -> None:
    found = Checkpoint.open(checkpoint(tmp_path, name))
    theirs = Qwen2_5_VLConfig.from_pretrained(found.path)
    text, vision = theirs.text_config, theirs.vision_config
    assert (found.text.layers, found.text.hidden, found.text.mlp) == (
        *(text.num_hidden_layers, text.hidden_size, text.intermediate_size),
    )
    assert (found.text.heads, found.text.kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert (found.text.vocab, found.text.rms_eps) == (text.vocab_size, text.rms_norm_eps)
    assert found.text.rope_theta == text.rope_parameters["rope_theta"]
    assert list(found.text.mrope_section) == text.rope_parameters["mrope_section"]
    assert found.text.tied == theirs.tie_word_embeddings
    assert (found.vision.depth, found.vision.hidden, found.vision.heads, found.vision.mlp) == (
        *(vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size),
    )
    assert (found.vision.patch, found.vision.merge, found.vision.window_px) == (
        *(vision.patch_size, vision.spatial_merge_size, vision.window_size),
    )
    assert list(found.vision.full_attention_blocks) == list(vision.fullatt_block_indexes)
    assert found.vision.tokens_per_second == vision.tokens_per_second
    assert found.vision.rope_theta == vision.rope_parameters["rope_theta"]
    assert (found.tokens.image_pad, found.tokens.video_pad) == (theirs.image_token_id, theirs.video_token_id)


@pytest.mark.parametrize("name", SHAPES)
def test_tensors_are_those_of_transformers_state_dict(tmp_path: Path, name: str) -> None:
    found = Checkpoint.open(checkpoint(tmp_path, name))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(found.path, dtype="auto")
    state = {
        key: value for key, value in model.state_dict().items() if not (found.text.tied and key == "lm_head.weight")
    }
    heads = {key for key in found.tensors if key.startswith("reflection_head.")}
    assert set(found.tensors) - heads == set(state)
    assert all(torch.equal(found.read(key), state[key]) for key in state)
    assert found.total_bytes == sum(found.read(key).nbytes for key in found.tensors)


def test_a_folder_saved_by_transformers_opens(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "small")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype="auto")
    model.save_pretrained(tmp_path / "saved")  # transformers 5: nested config, tensor names of 2025
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / "saved" / name).write_bytes((source / name).read_bytes())
    ours, theirs = Checkpoint.open(source), Checkpoint.open(tmp_path / "saved")
    assert (ours.text, ours.vision) == (theirs.text, theirs.vision)
    assert set(ours.tensors) == set(theirs.tensors)


def test_a_config_saved_between_the_two_spellings_opens(tmp_path: Path) -> None:
    """As transformers 4.54 saves it: text keys at the root and in `text_config`, which still has `rope_scaling`."""
    folder = checkpoint(tmp_path)
    before = Checkpoint.open(folder)

    def respell(config: dict[str, Any]) -> None:
        text = config["text_config"]
        sections = text.pop("rope_parameters")["mrope_section"]
        text["rope_scaling"] = {"mrope_section": sections, "rope_type": "default", "type": "default"}
        text["rope_theta"] = 1000000.0
        text["vtk_id"] = config.pop("vtk_id")
        config.update({key: value for key, value in text.items() if key not in ("model_type", "vtk_id")})
        config["hidden_size"] = 1  # what the root says does not count

    _edit_json("config.json", respell)(folder)
    after = Checkpoint.open(folder)
    assert (after.text, after.vision, after.reflection) == (before.text, before.vision, before.reflection)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_reads_every_element_type(tmp_path: Path, dtype: str) -> None:
    found = Checkpoint.open(make_checkpoint(tmp_path / "c", dtype=dtype, layers=1))
    assert found.dtype == dtype
    assert found.read("lm_head.weight").dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("reflection", "begins"), [("config", True), ("tokenizer", True), ("none", False)])
def test_reflection_ids_from_config_tokenizer_or_nowhere(tmp_path: Path, reflection: str, begins: bool) -> None:
    found = Checkpoint.open(make_checkpoint(tmp_path / "c", reflection=reflection, layers=1))
    assert (found.reflection is not None) == begins
    if found.reflection:
        ids = (found.reflection.begin_id, found.reflection.step_id, found.reflection.end_id)
        assert ids == tuple(map(found.tokenizer().token_to_id, ("<BOR>", "<VR>", "<EOR>")))


def test_head_kinds(tmp_path: Path) -> None:
    kinds = {
        name: Checkpoint.open(checkpoint(tmp_path, name)).reflection for name in ("small", "linear-head", "mlp-head")
    }
    assert [kind and (kind.head, kind.head_width, kind.head_bias) for kind in kinds.values()] == [
        ("identity", 0, False),
        ("linear", 0, True),
        ("mlp", 96, True),
    ]


def test_a_head_without_biases(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", head="linear", layers=1)
    _edit_weights(folder, lambda weights: weights.pop("reflection_head.bias"))
    found = Checkpoint.open(folder).reflection
    assert found is not None and (found.head, found.head_bias) == ("linear", False)


def test_stop_tokens_and_pixel_budget(tmp_path: Path) -> None:
    found = Checkpoint.open(checkpoint(tmp_path))
    end, other = (found.tokenizer().token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert found.tokens.stop == (end, other)
    assert found.image_budget == ImageBudget(3136, 12845056)


def test_todays_processor_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    assert Checkpoint.open(folder).image_budget is None
    size = {"shortest_edge": 1000, "longest_edge": 2000}
    processor = {"image_processor": {"size": size, "image_mean": [0.5, 0.5, 0.5]}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    found = Checkpoint.open(folder)
    assert found.image_budget == ImageBudget(1000, 2000)
    assert found.vision.image_mean == (0.5, 0.5, 0.5)


def test_tied_checkpoint_may_repeat_its_table(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", tied=True, layers=1)
    table = "model.language_model.embed_tokens.weight"
    _edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights[table].clone()}))
    assert "lm_head.weight" not in Checkpoint.open(folder).tensors


def test_fingerprint_knows_every_byte(tmp_path: Path) -> None:
    found = Checkpoint.open(checkpoint(tmp_path, "equal-heads"))
    seen: list[int] = []
    before = found.fingerprint(seen.append)
    assert sum(seen) > found.total_bytes
    again = Checkpoint.open(make_checkpoint(tmp_path / "again", like=SHAPES["equal-heads"]))
    assert found.fingerprint() == before == again.fingerprint()
    file = found.tensors["model.language_model.norm.weight"].file
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert found.fingerprint() != before


def test_hub_id_downloads_only_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        calls.append((repo_id, allow_patterns))
        return str(checkpoint(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = Checkpoint.open("owner/name")
    assert found.source == "owner/name"
    assert found.path == tmp_path / "small"
    assert calls == [("owner/name", ["*.json", "*.safetensors", "*.jinja", "merges.txt"])]


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "no network" in _refusal("owner/name")


def test_hub_cache_links_are_followed(tmp_path: Path) -> None:
    source, links = checkpoint(tmp_path, "equal-heads"), tmp_path / "snapshot"
    links.mkdir()
    for file in source.iterdir():
        (links / file.name).symlink_to(os.path.relpath(file, links))
    assert Checkpoint.open(links).total_bytes == Checkpoint.open(source).total_bytes


# Refusals: what is done to a good checkpoint, and what the one line must say.

Spoil = Callable[[Path], object]


def _edit_json(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return spoil


def _config(**changes: Any) -> Spoil:
    return _edit_json("config.json", lambda config: config.update(changes))


def _text(**changes: Any) -> Spoil:
    return _edit_json("config.json", lambda config: config["text_config"].update(changes))


def _vision(**changes: Any) -> Spoil:
    return _edit_json("config.json", lambda config: config["vision_config"].update(changes))


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    return lambda folder: _edit_weights(folder, change)


def _processor(**changes: Any) -> Spoil:
    return _edit_json("preprocessor_config.json", lambda data: data.update(changes))


def _generation(**changes: Any) -> Spoil:
    return _edit_json("generation_config.json", lambda data: data.update(changes))


def _pickled(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _cut_short(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-10])


def _map_first_to(file: object) -> Spoil:
    def change(index: dict[str, Any]) -> None:
        index["weight_map"][next(iter(index["weight_map"]))] = file

    return _edit_json("model.safetensors.index.json", change)


def _twice(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))
    save_file(load_file(second) | dict([load_file(first).popitem()]), second)


SECOND = "model-00002-of-00002.safetensors"
FIRST = "model.visual.patch_embed.proj.weight"  # the first tensor, so in the first shard

REFUSALS: dict[str, tuple[Spoil, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
    "config deep": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "config NaN": (_text(rms_norm_eps=float("nan")), "NaN is not a number"),
    "other model": (_config(model_type="llama"), "model_type 'llama'"),
    "quantized": (_config(quantization_config={"quant_method": "gptq"}), "quantized"),
    "no vision": (_config(vision_config=None), "vision_config"),
    "no layers": (_text(num_hidden_layers=None), "num_hidden_layers"),
    "endless layers": (_text(num_hidden_layers=10**9), "num_hidden_layers"),
    "layers no number": (_text(num_hidden_layers="28"), "num_hidden_layers is '28'"),
    "layers true": (_text(num_hidden_layers=True), "num_hidden_layers is True"),
    "sliding window": (_text(use_sliding_window=True), "use_sliding_window is True"),
    "sliding layers": (_text(layer_types=["sliding_attention"]), "layer_types"),
    "text activation": (_text(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "vision activation": (_vision(hidden_act="quick_gelu"), "hidden_act is 'quick_gelu'"),
    "yarn": (_text(rope_parameters={"rope_type": "yarn", "mrope_section": [2, 3, 3]}), "rope_type is 'yarn'"),
    "sections": (_text(rope_parameters={"type": "mrope", "mrope_section": [16, 24, 24]}), "mrope_section"),
    "no rope": (_text(rope_parameters=None), "rope_scaling"),
    "odd groups": (_text(num_key_value_heads=2), "num_key_value_heads"),
    "vision width": (_vision(out_hidden_size=64), "out_hidden_size is 64"),
    "full blocks": (_vision(fullatt_block_indexes=[3]), "fullatt_block_indexes"),
    "patch mismatch": (_processor(patch_size=16), "patch_size is 16"),
    "pickled": (_pickled, "pickled weights (pytorch_model.bin)"),
    "no weights": (lambda folder: [file.unlink() for file in folder.glob("*.safetensors*")], "neither"),
    "shard gone": (lambda folder: (folder / SECOND).unlink(), "lacks model-00002-of-00002"),
    "shard outside": (_map_first_to("../model.safetensors"), "not a .safetensors file of its folder"),
    "shard absolute": (_map_first_to("/etc/passwd"), "not a .safetensors file of its folder"),
    "shard a number": (_map_first_to(7), "not a .safetensors file of its folder"),
    "shard wrong": (_map_first_to(SECOND), f"{FIRST} not in the shard"),
    "no weight map": (_edit_json("model.safetensors.index.json", dict.clear), "weight_map"),
    "tensor twice": (_twice, "twice"),
    "two names": (_weights(lambda w: w.update({FIRST.removeprefix("model."): w[FIRST].clone()})), "twice"),
    "cut short": (_cut_short, "cut short"),
    "tensor gone": (_weights(lambda w: w.pop(FIRST)), f"{FIRST} not in the shard"),
    "more layers": (_text(num_hidden_layers=4), "lacks 24 of"),
    "fewer layers": (_text(num_hidden_layers=1), "12 tensors that this model has no place for"),
    "stray tensor": (_weights(lambda w: w.update(adapter=torch.ones(1))), "no place for: adapter"),
    "name of two lines": (_weights(lambda w: w.update({"a\nb": torch.ones(1)})), r"no place for: 'a\nb'"),
    "wrong shape": (_text(vocab_size=640), "for [640, 48]"),
    "integer weights": (_weights(lambda w: w.update({FIRST: w[FIRST].to(torch.int8)})), "element type I8"),
    "mixed types": (_weights(lambda w: w.update({FIRST: w[FIRST].to(torch.float16)})), "mixes element types"),
    "tied with a head": (_config(tie_word_embeddings=True), "ties lm_head"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "AutoTokenizer"),
    "tokenizer no BPE": (_edit_json("tokenizer.json", lambda t: t.pop("model")), "not a byte-level BPE"),
    "tokenizer large": (_text(vocab_size=64), "embedding has 64 rows"),
    "tokenizer other": (_config(image_token_id=5), "image_token_id 5"),
    "reflection partly": (_config(vtk_id=None), "three different ids"),
    "reflection same": (_config(vtk_id=3, vtk_start_id=3), "three different ids"),
    "reflection rows": (_config(vtk_id=576), "three different ids below 576"),
    "reflection steps": (_config(vtk_image_steps=-1), "vtk_image_steps"),
    "eos no id": (_generation(eos_token_id=["x"]), "eos_token_id"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(tmp_path: Path, case: str) -> None:
    spoil, wanted = REFUSALS[case]
    folder = make_checkpoint(tmp_path / "c", shards=2)
    Checkpoint.open(folder)
    spoil(folder)
    assert wanted in _refusal(folder)


def test_steps_are_the_checkpoints_own_or_the_authors(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c")
    silent = Checkpoint.open(folder).reflection
    _config(vtk_image_steps=4, vtk_video_steps=2)(folder)
    said = Checkpoint.open(folder).reflection
    assert silent is not None and said is not None
    assert (silent.image_steps, silent.video_steps) == (1, 4)
    assert (said.image_steps, said.video_steps) == (4, 2)


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    assert "is a file" in _refusal(__file__)
    assert "no such folder" in _refusal(tmp_path / "none")
    assert "no such folder" in _refusal("../none")


def test_a_broken_tokenizer_is_an_export_error(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    _edit_json("tokenizer.json", lambda t: t.update(decoder={"type": "none"}))(folder)
    with pytest.raises(ExportError, match="cannot be loaded"):
        Checkpoint.open(folder).tokenizer()


def _refusal(source: str | Path) -> str:
    """The one line that opening `source` is refused with: what, a semicolon or colon, and a remedy."""
    with pytest.raises(ExportError) as caught:
        Checkpoint.open(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    return message
