import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FACTS, make_manifest
from reflectrt.runtime import bundle as bundles
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import Port
from reflectrt.runtime.errors import BundleError, CompatibilityError
from reflectrt.runtime.manifest import (
    FileEntry,
    GraphEntry,
    LongForm,
    Manifest,
    StepForm,
    StepLayer,
    StepLinear,
    StoredWeight,
    VisionForm,
    dump,
)

WEIGHTS = "decoder.onnx.data"


@pytest.fixture(autouse=True)
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stamps go into a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose graphs are no graphs: opening reads none."""
    manifest = make_manifest()
    target = tmp_path / "bundle"
    target.mkdir()
    names = ["tokenizer.json", WEIGHTS, *(graph.file for graph in manifest.graphs.values())]
    for name in names:
        (target / name).write_bytes(name.encode() * 50)
    write(target, replace(manifest, files={name: entry(target / name) for name in names}))
    return target


def entry(file: Path) -> FileEntry:
    content = file.read_bytes()
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def write(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(dump(manifest))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest's JSON."""
    data = json.loads((folder / "manifest.json").read_text())
    edit(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def refusal(folder: Path) -> str:
    """The one-line message that opening ends with."""
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_whole_bundle_opens(folder: Path) -> None:
    opened = open_bundle(folder)
    assert opened.file(WEIGHTS).read_bytes().startswith(WEIGHTS.encode())


def test_a_bundle_stays_the_same_when_it_is_verified_and_is_another_with_other_facts(folder: Path) -> None:
    before = open_bundle(folder).sha256
    change(folder, lambda data: data.update(verification={"passed": True, "figures": {"cosine": 1.0}}))
    assert open_bundle(folder).sha256 == before
    change(folder, lambda data: data["model"].update(max_context=1234))
    assert open_bundle(folder).sha256 != before


def test_progress_counts_all_bytes(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_bundle(folder, lambda done, total: seen.append((done, total)))
    assert (
        seen[-1][0]
        == seen[-1][1]
        == sum(f.stat().st_size for f in folder.iterdir()) - (folder / "manifest.json").stat().st_size
    )


def test_a_flipped_byte_is_found_in_any_file(folder: Path) -> None:
    names = [file.name for file in folder.iterdir() if file.name != "manifest.json"]
    assert len(names) == 6
    for name in names:
        flip(folder / name)
        assert f"{name} is altered: sha256" in refusal(folder)
        flip(folder / name)
    open_bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in refusal(folder)


@pytest.mark.parametrize("size", [0, 10])
def test_a_short_file_is_named_with_both_sizes(folder: Path, size: int) -> None:
    os.truncate(folder / WEIGHTS, size)
    assert f"{WEIGHTS} has {size} bytes, expected {50 * len(WEIGHTS)}" in refusal(folder)


def test_links_folders_and_pipes_are_no_files(folder: Path, tmp_path: Path) -> None:
    file = folder / WEIGHTS
    file.rename(tmp_path / "outside")
    makers: list[Callable[[], object]] = [
        lambda: file.symlink_to(tmp_path / "outside"),
        file.mkdir,
        lambda: os.mkfifo(file),
    ]
    for make in makers:
        make()
        assert f"{WEIGHTS} is not a regular file" in refusal(folder)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


OUTSIDE = ["../outside", "/etc/hostname", "a/../../outside", "..", ".", "", "..\\outside", "graphs/../../outside"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    content = entry(tmp_path / "outside")
    change(folder, lambda data: data["files"].update({name: vars(content)}))
    assert f"names the file {name!r} outside the bundle" in refusal(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_graph_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    change(folder, lambda data: data["graphs"]["head"].update(file=name))
    assert f"names the file {name!r} outside the bundle" in refusal(folder)


def test_a_folder_of_the_bundle_that_links_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(b"secret")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    content = entry(tmp_path / "elsewhere" / "w.bin")
    change(folder, lambda data: data["files"].update({"sub/w.bin": vars(content)}))
    assert "outside the bundle" in refusal(folder)


@pytest.mark.parametrize("name", ["a\0b", "manifest.json/x", "x" * 5000, "\ud800", "new\nline"])
def test_names_that_no_file_can_have_are_refused(folder: Path, name: str) -> None:
    change(folder, lambda data: data["files"].update({name: {"size": 1, "sha256": "00"}}))
    refusal(folder)


def test_a_graph_without_a_hash_is_refused(folder: Path) -> None:
    change(folder, lambda data: data["files"].pop("head.onnx"))
    assert "lists no hash for head.onnx" in refusal(folder)


def test_a_tokenizer_without_a_hash_is_refused(folder: Path) -> None:
    change(folder, lambda data: data["files"].pop("tokenizer.json"))
    assert "lists no hash for tokenizer.json" in refusal(folder)


@pytest.mark.parametrize(
    "port",
    [
        Port("tokens", (1, "tokens"), "int64"),
        Port("token_ids", ("tokens",), "int64"),
        Port("token_ids", (1, 8), "int64"),
        Port("token_ids", (1, "tokens"), "int32"),
    ],
    ids=["name", "rank", "size", "type"],
)
def test_a_changed_signature_is_refused(folder: Path, port: Port) -> None:
    manifest = open_bundle(folder).manifest
    changed = GraphEntry("embed.onnx", (port,), manifest.graphs["embed"].outputs)
    write(folder, replace(manifest, graphs=manifest.graphs | {"embed": changed}))
    assert "graph embed does not have the contract's inputs and outputs" in refusal(folder)


def shared(name: str = "w", shape: tuple[int, ...] = (2, 8), file: str = WEIGHTS, offset: int = 16) -> StoredWeight:
    return StoredWeight(name, "float8e4m3fn", shape, file, offset)


def with_weights(
    folder: Path, *weights: StoredWeight, long_form: LongForm | None = None, step_form: StepForm | None = None
) -> None:
    manifest = open_bundle(folder).manifest
    decoder = replace(manifest.graphs["decoder"], weights=weights, long_form=long_form, step_form=step_form)
    write(folder, replace(manifest, graphs=manifest.graphs | {"decoder": decoder}))


LINEAR = StepLinear("w", None)
LAYER = StepLayer("n", LINEAR, "b", LINEAR, "n", LINEAR, LINEAR, LINEAR, ())
STEPS = StepForm(3, 1e-6, 1e6, (1, 0, 0), (LAYER,) * FACTS.layers, "n")
"""Of three heads over the made-up model's one of keys and values."""
NUMBERS = (
    shared(),
    shared("n", (FACTS.hidden,), offset=32),
    shared("b", (5 * FACTS.head_dim,), offset=36),
)
LONG = LongForm("head.onnx", 64, ((0.5, 2.0),) * FACTS.layers)


def test_a_graph_may_have_forms_for_steps_and_long_runs(folder: Path) -> None:
    with_weights(folder, *NUMBERS, long_form=LONG, step_form=STEPS)
    entry = open_bundle(folder).manifest.graphs["decoder"]
    assert entry.files() == ("decoder.onnx", "head.onnx", WEIGHTS)
    assert entry.file_signature().inputs[len(entry.inputs)] == Port("w", (2, 8), "float8e4m3fn")


@pytest.mark.parametrize(
    "steps",
    [
        replace(STEPS, layers=STEPS.layers[:1]),
        replace(STEPS, heads=0),
        replace(STEPS, heads=4),
        replace(STEPS, mrope_section=(2, 0, 0)),
        replace(STEPS, mrope_section=(2, -1, 0)),
        replace(STEPS, norm="b"),
        replace(STEPS, norm="absent"),
        replace(STEPS, layers=(LAYER, replace(LAYER, bias="n"))),
        replace(STEPS, layers=(LAYER, replace(LAYER, qkv=StepLinear("absent", None)))),
        replace(STEPS, layers=(LAYER, replace(LAYER, cache_scales=("n", "n")))),
    ],
)
def test_steps_must_fit_the_model(folder: Path, steps: StepForm) -> None:
    with_weights(folder, *NUMBERS, step_form=steps)
    assert "the steps of graph decoder do not fit the model's sizes" in refusal(folder)


@pytest.mark.parametrize("mlp_steps", [((0.5, 2.0),), ((0.5, 0.0),) * 2, ((-1.0, 1.0),) * 2])
def test_long_runs_must_fit_the_steps(folder: Path, mlp_steps: tuple[tuple[float, float], ...]) -> None:
    with_weights(folder, *NUMBERS, long_form=replace(LONG, mlp_steps=mlp_steps), step_form=STEPS)
    assert "do not fit its steps" in refusal(folder)


def test_one_graph_runs_the_attention_of_all_layers(folder: Path) -> None:
    other = replace(LAYER, output=StepLinear("w", "n"))
    with_weights(folder, *NUMBERS, long_form=LONG, step_form=replace(STEPS, layers=(LAYER, other)))
    assert "the long runs of graph decoder do not fit its steps" in refusal(folder)


def test_long_runs_need_steps(folder: Path) -> None:
    with_weights(folder, *NUMBERS, long_form=LONG)
    assert "the long runs of graph decoder do not fit its steps" in refusal(folder)


SIZE = 50 * len(WEIGHTS)


@pytest.mark.parametrize(
    "weight",
    [
        shared(offset=SIZE - 15),
        shared(offset=-1),
        shared(shape=(2**40, 2**40)),
        shared(shape=(0, 8)),
        shared(shape=(-1, -8)),
        shared(shape=()),
    ],
)
def test_weights_outside_their_file_are_refused(folder: Path, weight: StoredWeight) -> None:
    with_weights(folder, weight)
    assert f"is not inside {WEIGHTS}" in refusal(folder)


@pytest.mark.parametrize("weights", [(shared("embeddings"),), (shared(), shared(offset=32))])
def test_a_weight_has_a_name_of_its_own(folder: Path, weights: tuple[StoredWeight, ...]) -> None:
    with_weights(folder, *weights)
    assert "two inputs of one name" in refusal(folder)


def test_files_of_weights_stay_in_the_bundle(folder: Path) -> None:
    with_weights(folder, shared(file="../secret"))
    assert "outside the bundle" in refusal(folder)


def test_files_of_weights_and_forms_have_hashes(folder: Path) -> None:
    with_weights(folder, long_form=replace(LONG, file="decoder_long.onnx"))
    assert "lists no hash for decoder_long.onnx" in refusal(folder)


def test_a_form_for_runs_of_no_tokens_is_refused(folder: Path) -> None:
    with_weights(folder, long_form=replace(LONG, tokens=0))
    assert "a form for runs of 0 tokens" in refusal(folder)


def with_blocks(folder: Path, weights: tuple[StoredWeight, ...], **changes: Any) -> None:
    """The vision graph in segments whose files are those of other graphs."""
    manifest = open_bundle(folder).manifest
    form = VisionForm("embed.onnx", "decoder.onnx", "head.onnx", 4, 16, ("n",), (("w",), ("w",)), ())
    vision = replace(manifest.graphs["vision"], weights=weights, block_form=replace(form, **changes))
    write(folder, replace(manifest, graphs=manifest.graphs | {"vision": vision}))


def test_the_vision_graph_may_come_in_segments_as_well(folder: Path) -> None:
    with_blocks(folder, (shared(),))
    assert open_bundle(folder).manifest.graphs["vision"].block_form is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": (("w",), ("v",))}, "lacks the weight 'v'"),
        ({"blocks": (("w",), ("w", "w"))}, "does not say what its blocks read"),
        ({"inputs": ("n", "n"), "blocks": (("w", "w"),)}, "does not say what its blocks read"),
        ({"heads": 0}, "has no heads"),
        ({"end": "absent.onnx"}, "lists no hash for absent.onnx"),
    ],
)
def test_segments_that_cannot_be_run_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    with_blocks(folder, (shared(),), **changes)
    assert said in refusal(folder)


def test_facts_and_graphs_must_fit_each_other(folder: Path) -> None:
    change(folder, lambda data: data["model"].update(layers=3))
    assert "graph decoder does not have" in refusal(folder)


def test_a_missing_graph_is_refused(folder: Path) -> None:
    change(folder, lambda data: data["graphs"].pop("head"))
    assert "bundle has graphs ['decoder', 'embed', 'vision'], expected" in refusal(folder)


def test_a_reflection_head_needs_its_graph(folder: Path) -> None:
    change(folder, lambda data: data["reflection"].update(head="linear"))
    assert "'reflect'" in refusal(folder)


def test_an_oversized_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(17 * 2**20)
    assert "larger than 16 MB" in refusal(folder)


def test_a_manifest_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")
    assert "not UTF-8" in refusal(folder)


def test_what_is_no_bundle_is_told_apart(folder: Path, tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "absent")
    assert "not a folder" in refusal(folder / WEIGHTS)
    assert "has no manifest.json" in refusal(tmp_path)


def test_a_newer_format_names_both_versions(folder: Path) -> None:
    change(folder, lambda data: data.update(version=[2, 3]))
    with pytest.raises(CompatibilityError, match=r"bundle format 2\.3 is not the 1\.x"):
        open_bundle(folder)


# The stamp


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files hashed from here on."""
    names: list[str] = []
    original = bundles._sha256

    def spy(file: Path) -> str:
        names.append(file.name)
        return original(file)

    monkeypatch.setattr(bundles, "_sha256", spy)
    return names


def test_the_second_opening_hashes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = hashed(monkeypatch)
    open_bundle(folder)
    assert len(names) == 6
    open_bundle(folder)
    assert len(names) == 6


def test_an_altered_file_of_the_same_size_and_time_is_found(folder: Path) -> None:
    open_bundle(folder)
    file = folder / WEIGHTS
    before = file.stat()
    time.sleep(0.05)  # the kernel's clock for files ticks every few milliseconds
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert "is altered" in refusal(folder)


def test_only_what_changed_is_hashed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_bundle(folder)
    time.sleep(0.05)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    names = hashed(monkeypatch)
    open_bundle(folder)
    assert names == [WEIGHTS]


def test_a_bundle_that_moved_is_hashed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_bundle(folder)
    names = hashed(monkeypatch)
    open_bundle(folder.rename(folder.with_name("moved")))
    assert len(names) == 6


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"decoder.onnx.data": 3}', '{"decoder.onnx.data": ["x"]}']
)
def test_a_spoilt_stamp_only_costs_hashing(
    folder: Path, stamps: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    open_bundle(folder)
    (stamp,) = (stamps / "reflectrt").iterdir()
    stamp.write_text(text)
    names = hashed(monkeypatch)
    open_bundle(folder)
    assert len(names) == 6


def test_nowhere_to_keep_a_stamp_only_costs_hashing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    names = hashed(monkeypatch)
    open_bundle(folder)
    open_bundle(folder)
    assert len(names) == 12


def test_no_home_only_costs_hashing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    open_bundle(folder)
