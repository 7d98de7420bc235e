"""Every option that takes a number, with numbers that cannot be meant and with very large ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, film, run
from exports import Exports
from PIL import Image
from reflectrt.cli import build_parser

ASK = ("-q", "Which?", "-o", "a", "-o", "b")


@pytest.fixture
def bundle(exports: Exports) -> Path:
    return exports.bundle()


NUMBERS = {
    "export": (("{bundle}", "{out}"), ("--max-context",)),
    "calibrate": (
        ("{bundle}", "{bundle}", "{out}", "--precision", "int8"),
        ("--smooth", "--budget", "--limit", "--max-frames"),
    ),
    "build": (("{bundle}",), ("--capacity", "--max-patches", "--chunk", "--workspace")),
    "ask": (
        ("{bundle}", "{out}", "-q", "Which?"),
        (
            *("--steps", "--fps", "--max-frames", "--max-pixels", "--start", "--end", "--max-new-tokens"),
            *("--temperature", "--top-p", "--seed", "--threads"),
        ),
    ),
    "evaluate": (("needle-image", "{bundle}", "--out", "{out}"), ("--seed", "--steps", "--limit")),
    "profile": (
        ("{bundle}",),
        ("--frames", "--size", "--question-tokens", "--steps", "--runs", "--warm-up", "--threads"),
    ),
    "verify": (("{bundle}", "--against", "{bundle}"), ("--questions", "--seed", "--max-frames")),
}
"""Each command with what it cannot do without, and every option of it that takes a number."""


@pytest.mark.parametrize("number", ["-1", "nan", "1e999", "many", ""])
@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, (_, options) in NUMBERS.items() for option in options]
)
def test_what_is_no_number_is_wrong_usage_of_every_option(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, option: str, number: str
) -> None:
    needed, _ = NUMBERS[command]
    given = [part.format(bundle=bundle, out=tmp_path / "out") for part in needed]
    fails(capfd, 2, option.removeprefix("--").replace("-", ".")[:7], command, *given, f"{option}={number}")
    assert not list(tmp_path.iterdir())


def test_every_option_that_takes_a_number_is_among_them() -> None:
    found = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command, parser in found.items():  # type: ignore[union-attr]
        takes = {
            action.option_strings[-1]
            for action in parser._actions
            if action.option_strings and action.type not in (None, Path)
        }
        assert takes == set(NUMBERS.get(command, ((), ()))[1]), command


def test_very_large_numbers_are_limits_or_mean_no_limit(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)).save(picture)
    film(tmp_path / "film.mp4")
    most = "9" * 18
    fails(capfd, 1, "pass --steps", "ask", bundle, picture, *ASK, "--steps", most)
    fails(capfd, 1, "pass --max-new-tokens", "ask", bundle, picture, "-q", "What?", "--max-new-tokens", most)
    fails(capfd, 1, "has no frame between", "ask", bundle, tmp_path / "film.mp4", *ASK, "--start", "1e300")
    large = ("--max-frames", most, "--max-pixels", most, "--fps", "1e308", "--end", "1e300")
    status, out, lines = run(capfd, "ask", bundle, tmp_path / "film.mp4", *ASK, *large, "--json")
    assert (status, lines) == (0, [])
    assert json.loads(out)["media"]["frames"] == 50
    status, out, lines = run(
        capfd, "ask", bundle, picture, "-q", "What?", "--temperature", "1e-320", "--max-new-tokens", "2"
    )
    assert (status, lines) == (0, [])
