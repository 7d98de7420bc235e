"""MP4s that were trimmed without encoding them again: an edit list says which of the frames are shown."""

import struct
from pathlib import Path

import pytest
from films import film, numbers, opened

FRAMES, TICKS, START = 60, 512, 1024  # of 12800 a second; the first picture has that time, B-frames before it


def trimmed(path: Path, first: int, count: int) -> Path:
    """A film of `FRAMES` numbered frames whose edit list shows only some."""
    film(path, FRAMES, muxer={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # behind version, flags and the number of entries, which is 1
    struct.pack_into(">Ii", data, at, count * 40, START + first * TICKS)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("first, count", [(0, 60), (30, 30), (0, 20), (25, 20), (5, 6), (8, 8)])
def test_only_the_frames_shown_are_read_and_nothing_is_called_missing(tmp_path: Path, first: int, count: int) -> None:
    medium = opened(trimmed(tmp_path / "trimmed.mp4", first, count))
    assert numbers(medium)[:count] == list(range(first, first + count))
    assert medium.frames == count
    assert medium.warnings == ()


def test_a_trimmed_film_that_is_cut_off_is_called_truncated(tmp_path: Path) -> None:
    path = trimmed(tmp_path / "cut.mp4", 10, 50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    medium = opened(path)
    found = numbers(medium)
    assert found[:8] == list(range(10, 18))
    assert any("truncated" in text for text in medium.warnings)
