import json
import os
import re
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from command_line import fails, film, run
from exports import Exports
from PIL import Image

Paths = dict[str, Path]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Good and bad media by name."""
    folder = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(0)

    def picture(name: str, width: int, height: int) -> Path:
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        return folder / name

    (folder / "text.mp4").write_text("this is no film\n" * 50)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile '/etc/hostname'\n")
    (folder / "hls.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    cut = picture("cut.png", 100, 100).read_bytes()
    (folder / "cut.png").write_bytes(cut[: len(cut) // 8])
    film(folder / "film.mp4")
    whole = (folder / "film.mp4").read_bytes()
    (folder / "cutfilm.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "nofilm.mp4").write_bytes(whole[:300])
    audio(folder / "speech.mp4")
    return {path.stem: path for path in folder.iterdir()} | {
        "absent": folder / "absent.mp4",
        "picture": picture("picture.png", 140, 90),
        "thin": picture("thin.png", 8100, 40),
        "large": picture("large.png", 2000, 1500),
    }


@pytest.fixture
def bundle(exports: Exports) -> Path:
    return exports.bundle()


def audio(path: Path) -> None:
    """A second of silence as an MP4 without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


ASK = ("-q", "Which?", "-o", "a", "-o", "b")


# Media


BAD_MEDIA = {
    "absent": "no such file",
    "folder": "folder|directory",
    "text": "neither a video nor an image",
    "list": "neither a video nor an image",
    "hls": "neither a video nor an image",
    "empty": "neither a video nor an image",
    "sound": "neither a video nor an image",
    "speech": "no video|audio|sound|no picture",
    "nofilm": "",
    "thin": "200",
}


@pytest.mark.parametrize("name", BAD_MEDIA)
def test_bad_media_is_one_line(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str], name: str) -> None:
    fails(capfd, 1, f"(?i){media[name].name}.*({BAD_MEDIA[name]})", "ask", bundle, media[name], *ASK)


def test_a_second_medium_that_is_bad_is_named(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    fails(capfd, 1, r"absent\.mp4", "ask", bundle, media["picture"], media["absent"], *ASK)


def test_damage_is_a_warning_and_with_strict_an_error(
    bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, lines = run(capfd, "ask", bundle, media["cutfilm"], *ASK, "--json")
    assert status == 0
    assert lines[0].startswith(f"warning: {media['cutfilm']}: ")
    assert json.loads(out)["warnings"] == [line.removeprefix(f"warning: {media['cutfilm']}: ") for line in lines]
    fails(capfd, 1, r"cutfilm\.mp4", "ask", bundle, media["cutfilm"], *ASK, "--strict")


def test_a_damaged_picture_is_one_line(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    fails(capfd, 1, r"cut\.png", "ask", bundle, media["cut"], *ASK, "--strict")


def test_a_film_too_long_for_the_context_names_settings_that_fit(
    exports: Exports, tmp_path: Path, media: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    small = with_manifest(exports, tmp_path, lambda data: data["model"].update(max_context=300))
    ask = ("ask", small, media["film"], *ASK, "--fps", "25")
    status, _, lines = run(capfd, *ask)
    assert (status, len(lines)) == (1, 1)
    found = re.search(r"the context holds 300; pass --max-frames (\d+) --max-pixels (\d+) ", lines[0])
    assert found, lines
    frames, pixels = found.groups()
    status, out, _ = run(capfd, *ask, "--max-frames", frames, "--max-pixels", pixels, "--json")
    assert status == 0
    assert json.loads(out)["media"]["frames"] == int(frames)


def test_a_picture_too_large_for_the_context_names_a_setting_that_fits(
    exports: Exports, tmp_path: Path, media: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    small = with_manifest(exports, tmp_path, lambda data: data["model"].update(max_context=500))
    status, _, lines = run(capfd, "ask", small, media["large"], *ASK)
    assert (status, len(lines)) == (1, 1)
    found = re.search(r"the context holds 500; pass --max-pixels (\d+) ", lines[0])
    assert found, lines
    status, out, _ = run(capfd, "ask", small, media["large"], *ASK, "--max-pixels", found.group(1), "--json")
    assert status == 0
    assert 300 < json.loads(out)["media"]["visual_tokens"] < 500


# Bundles


def with_manifest(exports: Exports, tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the small bundle with its manifest's JSON edited."""
    folder: Path = shutil.copytree(exports.bundle(), tmp_path / "edited")
    data = json.loads((folder / "manifest.json").read_text())
    edit(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def flip(folder: Path) -> None:
    content = bytearray((folder / "decoder.onnx.data").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "decoder.onnx.data").write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip, r"decoder\.onnx\.data is altered"),
    "missing file": (lambda folder: (folder / "vision.onnx").unlink(), r"vision\.onnx is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json"),
    "cut manifest": (lambda folder: os.truncate(folder / "manifest.json", 700), "not valid JSON"),
    "not there": (shutil.rmtree, "not a folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_a_damaged_bundle_is_one_line(
    exports: Exports, tmp_path: Path, media: Paths, capfd: pytest.CaptureFixture[str], command: str, damage: str
) -> None:
    folder = shutil.copytree(exports.bundle(), tmp_path / "damaged")
    spoil, message = DAMAGE[damage]
    spoil(folder)
    fails(capfd, 1, message, command, folder, *((media["picture"], *ASK) if command == "ask" else ()))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer format": (lambda data: data.update(version=[2, 0]), r"bundle format 2\.0"),
    "path outside": (lambda data: data["files"].update({"../x": {"size": 1, "sha256": ""}}), "outside the bundle"),
    "absolute path": (lambda data: data["graphs"]["head"].update(file="/etc/passwd"), "outside the bundle"),
    "other target": (lambda data: data.update(target="cuda"), "exported for cuda"),
    "newer engine": (lambda data: data.update(engine={"onnxruntime": "99.0"}), r"needs ONNX Runtime 99\.0"),
    "line breaks": (lambda data: data["files"].update({"a\nb": 3}), "files"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_bundle_that_does_not_fit_is_one_line(
    exports: Exports, tmp_path: Path, media: Paths, capfd: pytest.CaptureFixture[str], edit: str
) -> None:
    change, message = EDITS[edit]
    fails(capfd, 1, message, "ask", with_manifest(exports, tmp_path, change), media["picture"], *ASK)


# Requests


USAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown option": (("-q", "Which?", "--step", "2"), "unrecognized|ambiguous"),
    "empty question": (("-q", " "), "question is empty"),
    "27 options": (("-q", "Which?", *(x for i in range(27) for x in ("-o", str(i)))), "27 options.*at most 26"),
    "one option": (("-q", "Which?", "-o", "a"), "one option"),
    "empty option": (("-q", "Which?", "-o", "a", "-o", ""), "option is empty"),
    "no question": ((), "-q"),
    "negative steps": (("-q", "Which?", "--steps", "-1"), "steps"),
    "words for a number": (("-q", "Which?", "--fps", "fast"), "'fast' is not a number"),
    "no frames a second": (("-q", "Which?", "--fps", "0"), "0 frames"),
    "no new tokens": (("-q", "Which?", "--max-new-tokens", "0"), "0 is too small"),
    "cold temperature": (("-q", "Which?", "--temperature", "-1"), "temperature is -1"),
    "top-p of 2": (("-q", "Which?", "--top-p", "2"), r"top_p is 2\.0"),
    "unknown device": (("-q", "Which?", "--device", "tpu"), "invalid choice: 'tpu'"),
    "unknown mode": (("-q", "Which?", "--reflect", "maybe"), "invalid choice: 'maybe'"),
    "steps of 5000 digits": (("-q", "Which?", "--steps", "9" * 5000), "5000 digits is too large"),
    "less than a token": (("-q", "Which?", "--max-pixels", "1"), "max_pixels is 1; pass 784"),
    "an end before the start": (("-q", "Which?", "--start", "5", "--end", "2"), "start_s is 5 and end_s 2"),
    "no number of seconds": (("-q", "Which?", "--end", "nan"), "'nan' is not a number"),
    "endless seconds": (("-q", "Which?", "--start", "inf"), "'inf' is not a number"),
    "no temperature": (("-q", "Which?", "--temperature", "nan"), "temperature is nan"),
    "negative seed": (("-q", "Which?", "--seed", "-1"), "'-1' is not a whole number"),
    "no frames": (("-q", "Which?", "--max-frames", "0"), "0 is too small"),
    "half a frame": (("-q", "Which?", "--max-frames", "1.5"), "'1.5' is not a whole number"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_ends_with_2(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str], case: str) -> None:
    arguments, message = USAGE[case]
    fails(capfd, 2, message, "ask", bundle, media["picture"], *arguments)


@pytest.mark.parametrize("arguments", [(), ("answer",), ("ask",), ("export", "checkpoint"), ("inspect",)], ids=str)
def test_wrong_commands_end_with_2(capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    fails(capfd, 2, "--help", *arguments)


def test_a_question_that_is_no_text_is_one_line(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    fails(capfd, 2, "question", "ask", bundle, media["picture"], "-q", os.fsdecode(b"caf\xe9?"))


def test_more_steps_than_the_context_holds_are_refused(
    bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    fails(capfd, 1, "the context holds", "ask", bundle, media["picture"], *ASK, "--steps", "1000000")


def test_a_cuda_device_is_refused_on_a_cpu_bundle(
    bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    fails(capfd, 1, "exported for cpu", "ask", bundle, media["picture"], *ASK, "--device", "cuda")


@pytest.mark.parametrize("command", ["ask", "export", "verify", "inspect"])
def test_help_has_an_example(capfd: pytest.CaptureFixture[str], command: str) -> None:
    status, out, lines = run(capfd, command, "--help")
    assert (status, lines) == (0, [])
    assert f"reflectrt {command} " in out


# Export


def test_a_bundle_is_not_replaced_without_force(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exports.bundle(), tmp_path / "bundle")
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    fails(capfd, 1, "exists; pass --force", "export", exports.checkpoint(), folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{absent}", "{target}"), "no such folder"),
        (("{checkpoint}", "{absent}/bundle"), "is not a folder; create it"),
        (("{checkpoint}", "{precious}"), "exists and is not a bundle"),
        (("{checkpoint}", "{precious}", "--force"), "exists and is not a bundle"),
        (("{checkpoint}", "{target}", "--target", "cuda", "--precision", "fp32"), "target cuda does not run fp32"),
        (("{checkpoint}", "{target}", "--precision", "int8"), "int8 needs the ranges of activations"),
        (("{precious}", "{target}"), r"no config\.json"),
    ],
)
def test_an_export_that_cannot_be_is_one_line_and_leaves_nothing(
    exports: Exports, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    names = {"checkpoint": exports.checkpoint()} | {name: tmp_path / name for name in ("absent", "target", "precious")}
    fails(capfd, 1, message, "export", *(argument.format(**names) for argument in arguments))
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "thesis.tex"]


def test_an_interrupted_export_leaves_nothing(exports: Exports, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reflectrt.cli", "export", str(exports.checkpoint()), str(tmp_path / "bundle")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert first.endswith("...\n")
    assert process.returncode == 143
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())


# Answers


def test_an_interrupt_is_one_line_also_while_modules_are_imported() -> None:
    code = """
import signal, sys
class Impatient:
    def find_spec(self, name, *rest):
        if name == "numpy":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Impatient())
from reflectrt.cli import main
sys.exit(main(["inspect", "bundle"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_interrupt_of_a_library_that_starts_is_an_interrupt(capfd: pytest.CaptureFixture[str]) -> None:
    from reflectrt.cli import run_guarded

    def start() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    assert run_guarded(start) == 130
    assert capfd.readouterr().err == "error: interrupted\n"


def test_running_out_of_memory_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    from reflectrt.cli import run_guarded

    def greedy() -> int:
        raise MemoryError

    assert run_guarded(greedy) == 1
    assert re.fullmatch("error: out of memory; .*\n", capfd.readouterr().err)


def test_json_is_one_object_and_nothing_else(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, lines = run(capfd, "ask", bundle, media["picture"], *ASK, "-q", "And now?", "--steps", "2", "--json")
    assert (status, lines) == (0, [])
    found = json.loads(out)
    assert len(found["answers"]) == 2
    for answer, question in zip(found["answers"], ("Which?", "And now?"), strict=True):
        assert set(answer) >= {"question", "text", "option", "option_scores", "tokens", "reflection", "forwards"}
        assert set(answer["timings"]) == {"read", "vision", "prefill", "reflect", "decode", "total"}
        assert (answer["question"], answer["forwards"], len(answer["reflection"])) == (question, 4, 2)
        assert answer["option"] in ("A", "B")
    assert set(found["media"]) >= {"frames", "grid", "visual_tokens"}
    assert found["media"]["visual_tokens"] == found["media"]["grid"][1] * found["media"]["grid"][2] // 4
    assert set(found["bundle"]) == {"target", "precision", "sha256"}


def test_a_choice_is_printed_with_its_letter(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capfd, "ask", bundle, media["picture"], *ASK)
    assert status == 0
    assert re.fullmatch(r"[AB]\. [ab]  \(\d+%\)\n", out)


def test_free_text_is_printed_as_it_is_answered(bundle: Path, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("ask", bundle, media["picture"], "-q", "What?", "--max-new-tokens", "6", "--reflect", "always")
    _, spoken, _ = run(capfd, *arguments)
    _, out, _ = run(capfd, *arguments, "--json")
    assert spoken.strip() == json.loads(out)["answers"][0]["text"]


def test_a_plain_qwen_is_noted_on_stderr(exports: Exports, media: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, lines = run(*(capfd, "ask", exports.bundle("plain"), media["picture"], *ASK, "--steps", "4", "--json"))
    assert status == 0
    assert json.loads(out)["answers"][0]["forwards"] == 2
    assert len(lines) == 1
    assert "without reflection" in lines[0]


def test_inspect_shows_the_bundle(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, lines = run(capfd, "inspect", bundle, "--json")
    assert (status, lines) == (0, [])
    assert json.loads(out)["format"] == "reflectrt-bundle"
    status, text, lines = run(capfd, "inspect", bundle)
    assert (status, lines) == (0, [])
    assert json.loads(out)["sha256"] in text


def test_verify_agrees_with_the_right_checkpoint_and_not_with_another(
    exports: Exports, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capfd, "verify", bundle, "--against", exports.checkpoint(), "--json")
    assert status == 0
    record = json.loads(out)
    assert record["passed"]
    assert record["figures"]["tokens_equal"] == 1
    assert record["figures"]["reflection_cosine"] >= 0.99999
    from checkpoints import SHAPES
    from reflectrt.bench.random_checkpoint import make_checkpoint

    other = make_checkpoint(tmp_path / "other", like=SHAPES["small"], seed=99)
    fails(capfd, 1, "was exported from small", "verify", bundle, "--against", other)


@pytest.mark.parametrize("threads", ["0", "100000"])
def test_threads_that_the_machine_lacks_are_refused(threads: str) -> None:
    bundle = str(Path(__file__).parents[1] / "assets" / "demo")
    asked = ["ask", bundle, "clip.mp4", "-q", "What?", "--threads", threads]
    done = subprocess.run([sys.executable, "-m", "reflectrt.cli", *asked], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
