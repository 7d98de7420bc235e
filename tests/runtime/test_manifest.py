import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import make_manifest
from reflectrt.runtime.errors import BundleError, CompatibilityError, ReflectRTError
from reflectrt.runtime.manifest import (
    FileEntry,
    Reflection,
    StepForm,
    StepLayer,
    StepLinear,
    StoredWeight,
    Verification,
    VisionForm,
    WeightDtype,
    dump,
    parse,
)

FULL = make_manifest(
    verification=Verification(True, {"vision_cosine": 0.9999999}),
    recipe={"precision": "int8", "leave": ["lm_head"]},
    files={"a.onnx": FileEntry(3, "ab" * 32)},
)


@pytest.mark.parametrize(
    "manifest",
    [FULL, make_manifest(reflection=None), make_manifest(Reflection(1, 2, 3, "mlp", 1, 4))],
    ids=["full", "plain", "mlp"],
)
def test_what_is_dumped_is_parsed_back(manifest: Any) -> None:
    assert parse(dump(manifest)) == manifest


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(dump(FULL))
    change(data)
    return json.dumps(data)


def refusal(text: str) -> str:
    """The one-line message that a manifest is refused with."""
    with pytest.raises(BundleError) as caught:
        parse(text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def paths(data: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every field of the fixed parts."""
    if not isinstance(data, dict):
        return []
    found = [(*before, key) for key in data]
    free = {"tools", "engine", "recipe", "files", "graphs", "figures"}
    return found + [path for key in data if key not in free for path in paths(data[key], (*before, key))]


@pytest.mark.parametrize(
    "path", [p for p in paths(json.loads(dump(FULL))) if p not in {("format",), ("version",)}], ids=str
)
def test_a_missing_field_is_named(path: tuple[str, ...]) -> None:
    def drop(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    assert f"manifest.{'.'.join(path)} is missing" in refusal(changed(drop))


WRONG: list[tuple[tuple[str, ...], Any]] = [
    (("target",), 3),
    (("model",), []),
    (("model", "hidden"), "48"),
    (("model", "hidden"), 48.0),
    (("model", "hidden"), True),
    (("model", "hidden"), None),
    (("model", "tokens_per_second"), "2"),
    (("prompt", "stop"), 60),
    (("prompt", "stop"), ["60"]),
    (("prompt", "letters"), {"A": 1}),
    (("reflection",), "yes"),
    (("reflection", "head"), "conv"),
    (("graphs",), []),
    (("graphs", "embed", "inputs"), [{"name": "x", "axes": [1.5], "dtype": "int64"}]),
    (("tools",), {"python": 3}),
    (("verification", "figures"), {"cosine": "high"}),
    (("files", "a.onnx"), {"size": "3", "sha256": ""}),
    (("files", "a.onnx"), None),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=str)
def test_a_wrong_type_is_named(path: tuple[str, ...], value: Any) -> None:
    def put(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    assert f"manifest.{'.'.join(path)}" in refusal(changed(put))


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    def add(data: dict[str, Any]) -> None:
        data["version"] = [1, 7]
        data["mood"] = "good"
        data["model"]["experts"] = 8

    assert parse(changed(add)) == replace(FULL, version=(1, 7))


def test_manifests_from_before_format_1_4_have_one_form_and_no_shared_weights() -> None:
    def age(data: dict[str, Any]) -> None:
        data["version"] = [1, 3]
        for graph in data["graphs"].values():
            del graph["long_form"], graph["weights"], graph["step_form"], graph["block_form"]

    assert parse(changed(age)) == replace(FULL, version=(1, 3))


def test_manifests_from_before_format_1_5_have_one_form_and_weights_of_fp8() -> None:
    weight = StoredWeight("w", "float8e4m3fn", (16, 4), "decoder_shared.data", 0)
    manifest = replace(
        FULL, version=(1, 4), graphs=FULL.graphs | {"decoder": replace(FULL.graphs["decoder"], weights=(weight,))}
    )
    data = json.loads(dump(manifest))
    for graph in data["graphs"].values():
        del graph["step_form"], graph["block_form"]
    data["graphs"]["decoder"]["long_form"] = {"file": "decoder_long.onnx", "tokens": 2048}
    assert parse(json.dumps(data)) == manifest
    data["version"] = [1, 5]
    assert "is missing" in refusal(json.dumps(data))


def test_logits_of_bundles_before_format_1_6_are_of_the_activation_type() -> None:
    data = json.loads(dump(FULL)) | {"version": [1, 5]}
    del data["model"]["logits_dtype"]
    assert parse(json.dumps(data)).expected_signatures()["head"].outputs[0].dtype == "float"
    assert FULL.expected_signatures()["head"].outputs[0].dtype == "float32"
    assert "is missing" in refusal(json.dumps(data | {"version": [1, 6]}))


LINEAR, QUANTIZED = StepLinear("w", None), StepLinear("w", "s")
LAYER = StepLayer("n", LINEAR, "b", QUANTIZED, "m", LINEAR, LINEAR, QUANTIZED, ("key_cache.0_scale",))
STEPS = StepForm(7, 1e-6, 1e6, (16, 24, 24), (LAYER,), "norm")


def test_steps_are_parsed_back_and_a_wrong_part_is_named() -> None:
    entry = replace(FULL.graphs["decoder"], step_form=STEPS)
    text = dump(replace(FULL, graphs=FULL.graphs | {"decoder": entry}))
    assert parse(text).graphs["decoder"].step_form == STEPS
    wrong = text.replace('"scales": "s"', '"scales": 3', 1)
    assert "decoder.step_form.layers[0].output.scales is 3" in refusal(wrong)
    short = dump(replace(FULL, graphs={"decoder": replace(entry, step_form=replace(STEPS, mrope_section=(32, 32)))}))  # type: ignore[arg-type]  # the point
    assert "decoder.step_form.mrope_section has 2 items, not 3" in refusal(short)


SEGMENTS = VisionForm("s.onnx", "b.onnx", "e.onnx", 16, 80, ("norm2.weight",), (("a",), ("b",)), (1,))


def test_segments_are_parsed_back_and_their_files_are_named() -> None:
    weights = tuple(StoredWeight(name, "bfloat16", (4,), "vision.onnx.data", 0) for name in ("a", "b"))
    entry = replace(FULL.graphs["vision"], weights=weights, block_form=SEGMENTS)
    text = dump(replace(FULL, graphs=FULL.graphs | {"vision": entry}))
    assert parse(text).graphs["vision"] == entry
    assert entry.files() == (entry.file, "s.onnx", "b.onnx", "e.onnx", "vision.onnx.data")
    assert entry.file_signature() == entry.signature()  # the whole graph has its weights inside
    wrong = text.replace('"heads": 16', '"heads": "16"', 1)
    assert "vision.block_form.heads is '16'" in refusal(wrong)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float8e4m3fn", 1), ("uint8", 1)])
def test_a_weight_s_bytes_are_those_of_its_type(dtype: WeightDtype, size: int) -> None:
    assert StoredWeight("w", dtype, (3, 5), "f", 0).nbytes == 15 * size


@pytest.mark.parametrize("version", [[2, 0], [0, 9]])
def test_another_major_version_says_which_is_read(version: list[int]) -> None:
    with pytest.raises(CompatibilityError, match=f"format {version[0]}.{version[1]} is not the 1.x"):
        parse(changed(lambda data: data.update(version=version)))


@pytest.mark.parametrize("version", ["1.0", [1], [1, 0, 0], [1, "0"], [True, 0], None, {"major": 1}])
def test_a_senseless_version_is_shown(version: Any) -> None:
    assert "manifest.version is" in refusal(changed(lambda data: data.update(version=version)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"x"', "{}", '{"format": "other"}', "PK\x03\x04", "[" * 10**5]
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, "1" * 5000])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    refusal(dump(FULL).replace('"tokens_per_second": 2.0', f'"tokens_per_second": {number}'))


def test_duplicate_keys_are_refused() -> None:
    text = dump(FULL)
    assert "duplicate key" in refusal(text.replace('"target": "cpu"', '"target": "cpu", "target": "cuda"'))
    assert "duplicate key" in refusal(text.replace('"hidden": 4', '"hidden": 4, "hidden": 4'))


def test_messages_stay_on_one_line_whatever_the_file_says() -> None:
    def spoil(data: dict[str, Any]) -> None:
        data["files"]["a\nTraceback (most recent call last):\n"] = "b\n" * 1000

    assert len(refusal(changed(spoil))) < 400


def test_errors_are_ours() -> None:
    assert issubclass(BundleError, ReflectRTError)
    assert issubclass(CompatibilityError, ReflectRTError)


@pytest.mark.parametrize("name", [key for key in json.loads(dump(FULL))["model"]])
@pytest.mark.parametrize("size", [0, -1, 2**40])
def test_sizes_that_cannot_be_are_named(name: str, size: int) -> None:
    assert f"manifest.model.{name} is {size}" in refusal(changed(lambda data: data["model"].update({name: size})))


@pytest.mark.parametrize("name", json.loads(dump(FULL))["prompt"])
@pytest.mark.parametrize("token", [-1, 64])
def test_tokens_outside_the_vocabulary_are_named(name: str, token: int) -> None:
    def put(data: dict[str, Any]) -> None:
        data["prompt"][name] = [5, token] if isinstance(data["prompt"][name], list) else token

    assert f"{name} is" in refusal(changed(put))


@pytest.mark.parametrize("name", ["begin", "step", "end"])
def test_reflection_tokens_outside_the_vocabulary_are_named(name: str) -> None:
    assert f"{name} is 64" in refusal(changed(lambda data: data["reflection"].update({name: 64})))


def test_an_empty_part_of_the_prompt_is_named() -> None:
    assert "opening is ()" in refusal(changed(lambda data: data["prompt"].update(opening=[])))
