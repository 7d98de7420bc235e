"""Which questions a path stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reflectrt.calibration.samples import SAMPLES, gather_samples
from reflectrt.runtime.errors import UsageError


def listed(folder: Path, *names: str) -> Path:
    """A folder with a samples.jsonl about media of these names."""
    folder.mkdir()
    lines = [{"media": name, "question": "What?", "options": ["a", "b"], "label": "A"} for name in names]
    (folder / SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_folder_stands_for_every_list_below_it_in_turns(tmp_path: Path) -> None:
    films = listed(tmp_path / "films", "1.mp4", "2.mp4", "3.mp4")
    pictures = listed(tmp_path / "pictures", "1.png")
    media = [sample.media for sample in gather_samples(tmp_path)]
    assert media == [(films / "1.mp4",), (pictures / "1.png",), (films / "2.mp4",), (films / "3.mp4",)]


def test_a_list_stands_for_itself(tmp_path: Path) -> None:
    films = listed(tmp_path / "films", "1.mp4")
    assert gather_samples(films / SAMPLES) == gather_samples(films)


def test_media_without_a_list_are_described(tmp_path: Path) -> None:
    (tmp_path / "1.mp4").touch()
    (sample,) = gather_samples(tmp_path)
    assert sample.media == (tmp_path / "1.mp4",)
    assert sample.options == ()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none is not there"):
        gather_samples(tmp_path / "none")
