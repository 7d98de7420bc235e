from pathlib import Path

import av
import numpy as np
import pytest
from films import film, numbers, opened, pictures
from reflectrt.runtime.errors import MediaError

FRONT = {"movflags": "faststart"}


def noise(count: int = 40) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (84, 112, 3), dtype=np.uint8) for i in range(count)]


def cut(path: Path, part: float) -> Path:
    """The file's first part, in its place."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def flipped(path: Path, count: int, first: float = 0.3, last: float = 0.8) -> Path:
    """The file with so many bytes inverted between two parts of it, in its place."""
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(3).integers(int(len(data) * first), int(len(data) * last), count):
        data[at] ^= 255
    path.write_bytes(bytes(data))
    return path


def test_a_file_cut_before_its_index_says_it_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"film\.mp4 has no index \(moov\): it is incomplete"):
        opened(cut(film(tmp_path / "film.mp4", noise()), 0.5))


def test_of_a_cut_file_what_is_there_is_read_with_a_warning(tmp_path: Path) -> None:
    whole = pictures(opened(film(tmp_path / "film.mp4", noise(), muxer=FRONT)))
    medium = opened(cut(tmp_path / "film.mp4", 0.55))
    (warning,) = medium.warnings
    there = int(warning.removeprefix("the file is truncated: ").removesuffix(" of 40 frames are there"))
    assert 15 < there < 25
    found = pictures(medium)
    assert medium.frames == there // 2 * 2
    for picture in found[:10]:
        assert np.abs(whole.astype(int) - picture).mean(axis=(1, 2, 3)).min() == 0
    assert medium.warnings == (warning,)


@pytest.mark.parametrize(
    ("name", "claim"), [("film.mkv", "of 1.6 s"), ("film.flv", "frames are there"), ("film.avi", "of 40 frames")]
)
def test_a_cut_is_noticed_in_every_container_that_claims_a_length(tmp_path: Path, name: str, claim: str) -> None:
    medium = opened(cut(film(tmp_path / name, noise()), 0.5))
    assert medium.warnings[0].startswith("the file is truncated: ")
    assert claim in medium.warnings[0]
    assert 10 < medium.frames < 30
    assert len(pictures(medium)) == medium.frames


def test_a_file_without_a_whole_frame_is_an_error(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", noise(), muxer=FRONT)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 1000])
    with pytest.raises(MediaError, match=r"film\.mp4 has .*frame.*; convert it again"):
        opened(path)


def test_a_header_without_frames_is_an_error(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", 4, muxer={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    with pytest.raises(MediaError, match=r"film\.mp4 (has|cannot)"):
        opened(path)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "film.avi", "film.flv"])
def test_flipped_bytes_are_read_over_and_reported(tmp_path: Path, name: str) -> None:
    medium = opened(flipped(film(tmp_path / name, noise()), 60))
    before = medium.frames
    assert len(pictures(medium)) >= 20
    assert medium.frames <= before
    assert any("damaged" in warning or "lost" in warning for warning in medium.warnings), medium.warnings


def test_packets_that_do_not_decode_are_counted(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", noise(), codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0])]
    data = path.read_bytes()
    for packet in packets[10:13]:
        data = data.replace(packet, b"\xff" * len(packet))  # not even the marker that begins a frame
    path.write_bytes(data)
    medium = opened(path)
    assert len(pictures(medium)) == 40
    assert medium.warnings == ("damaged packets skipped: 3", "frames lost, the next ones stand in: 3")


def test_all_frames_damaged_is_an_error(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", 8)
    data = bytearray(path.read_bytes())
    first = data.index(b"mdat") + 4
    data[first : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - first)
    path.write_bytes(bytes(data))
    with pytest.raises(MediaError, match="no frame that can be decoded"):
        opened(path)


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    medium = opened(film(tmp_path / "film.mp4", noise(), muxer=FRONT))
    cut(tmp_path / "film.mp4", 0.5)
    with pytest.raises(MediaError, match=r"film\.mp4 was changed after it was opened"):
        list(medium.patches(1))


def test_a_file_that_is_replaced_after_opening_is_an_error(tmp_path: Path) -> None:
    medium = opened(film(tmp_path / "film.mp4", 8))
    film(tmp_path / "other.mp4", 8).replace(tmp_path / "film.mp4")
    with pytest.raises(MediaError, match=r"film\.mp4 was changed after it was opened"):
        list(medium.patches(1))


def test_a_file_that_shrinks_while_it_is_read_ends_early(tmp_path: Path) -> None:
    path = film(tmp_path / "film.ts", noise(200))
    medium = opened(path)
    chunks = medium.patches(1)
    grids = 1 + (next(chunks) is None)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    grids += sum(len(chunk) for chunk in chunks)
    assert 1 < grids < 100
    assert medium.grid[0] == grids
    assert medium.warnings


def test_a_file_that_vanishes_is_an_error(tmp_path: Path) -> None:
    medium = opened(film(tmp_path / "film.mp4", 4))
    (tmp_path / "film.mp4").unlink()
    with pytest.raises(MediaError, match="no such file"):
        list(medium.patches(1))


def test_joined_pieces_that_start_anew_are_counted(tmp_path: Path) -> None:
    part = film(tmp_path / "part.ts", 20).read_bytes()
    (tmp_path / "joined.ts").write_bytes(part + part)
    medium = opened(tmp_path / "joined.ts")
    assert numbers(medium) == [*range(20), *range(20)]
    assert medium.warnings == ("times are missing or repeat; taking 25 frames a second",)


def test_a_stream_that_begins_in_the_middle_is_read_from_its_first_key_frame(tmp_path: Path) -> None:
    data = film(tmp_path / "film.ts", noise(80)).read_bytes()
    (tmp_path / "late.ts").write_bytes(data[188 * (len(data) // 188 // 3) :])
    medium = opened(tmp_path / "late.ts", max_frames=4)
    assert len(pictures(medium)) == 4


def test_an_hour_of_frames_is_read_in_a_handful(tmp_path: Path) -> None:
    path = film(tmp_path / "slow.mp4", 60, times_ms=range(0, 3_600_000, 60_000))
    medium = opened(path, fps=2, max_frames=8)
    assert numbers(medium) == np.round(np.linspace(0, 59, 8)).tolist()
    assert medium.second_per_grid == pytest.approx(2 * 3540 / 7, rel=0.01)
