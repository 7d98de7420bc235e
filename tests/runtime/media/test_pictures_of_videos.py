"""Colours, sizes, turns and streams: what a video's frames look like when they come out."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import film, number_of, numbered, numbers, opened, pictures
from PIL import Image

RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 180, 30), (30, 30, 200), (128, 128, 128)


def corners(height: int = 84, width: int = 112) -> np.ndarray:
    """Red, green / blue, grey."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, GREY
    return picture


def close(found: np.ndarray, wanted: np.ndarray, off: float = 10) -> bool:
    """Whether the middles of the four quarters have the same colours."""
    height, width, _ = wanted.shape
    at = np.ix_([height // 4, height * 3 // 4], [width // 4, width * 3 // 4])
    return bool(found.shape == wanted.shape and np.abs(found[at].astype(int) - wanted[at]).max() <= off)


def turned(path: Path, degrees: int) -> Path:
    """Write a turn into a film's display matrix (track header of an MP4)."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind version, times, id, duration, layer and volume
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_seen_upright(tmp_path: Path, degrees: int) -> None:
    path = turned(film(tmp_path / "phone.mp4", [corners()] * 4), degrees)
    upright = np.rot90(corners(), k=-degrees // 90)  # the matrix turns clockwise
    assert close(pictures(opened(path))[0], upright)


COLOURS: dict[str, dict[str, Any]] = {
    "8 bit": {},
    "4:4:4": {"pix_fmt": "yuv444p", "options": {"qp": "0"}},
    "10 bit": {"pix_fmt": "yuv420p10le"},
    "BT.601": {"colorspace": 5, "color_range": 1},
    "BT.709": {"colorspace": 1, "color_range": 1},
    "BT.709 full range": {"colorspace": 1, "color_range": 2},
    "full range": {"colorspace": 5, "color_range": 2},
    "full range by format": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"qmin": "1", "qmax": "1"}},
    "no loss": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "ProRes": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_survive(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / "colours.mkv", [corners()] * 3, **COLOURS[name])
    medium = opened(path)
    assert close(pictures(medium)[0], corners(), off=6)
    assert medium.warnings == ()


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_read_as_it_is_and_says_so(tmp_path: Path, transfer: int, name: str) -> None:
    how = {"pix_fmt": "yuv420p10le", "color_trc": transfer, "color_primaries": 9, "colorspace": 9}
    medium = opened(film(tmp_path / "hdr.mp4", 4, **how))
    assert medium.warnings == (f"HDR video ({name}) is read without tone mapping",)
    assert numbers(medium) == [0, 1, 2, 3]


@pytest.mark.parametrize(("width", "height"), [(639, 271), (17, 33), (1, 1), (27, 400)])
def test_odd_sizes_are_resized_to_whole_patches(tmp_path: Path, width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    medium = opened(film(tmp_path / "odd.mkv", [noise] * 2, codec="ffv1", pix_fmt="bgr0"), min_pixels=3136)
    _, rows, columns = medium.grid
    assert (rows % 2, columns % 2) == (0, 0)
    exact = Image.fromarray(noise).resize((columns * 14, rows * 14), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pictures(medium)[0], np.asarray(exact))


def test_a_size_that_changes_in_the_middle_does_not_change_the_grid(tmp_path: Path) -> None:
    parts = [film(tmp_path / f"{n}.h264", [numbered(n, *size)] * 8) for n, size in ((1, (112, 84)), (2, (224, 280)))]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    medium = opened(path)
    assert medium.grid == (8, 6, 8)
    assert numbers(medium) == [1] * 8 + [2] * 8


def streams(path: Path, *sizes: tuple[int, int], cover: bool = False, sound: bool = False) -> Path:
    """An MKV or MP4 with a film of each size, which shows 1, 2, ..., and what else it is to have."""
    with av.open(str(path), "w") as container:
        videos = []
        if cover:
            picture = io.BytesIO()
            Image.new("RGB", (640, 640), RED).save(picture, format="JPEG")
            art = container.add_stream("mjpeg", rate=1)
            art.width = art.height = 640
            art.pix_fmt = "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
        for width, height in sizes:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            videos.append(stream)
        if sound:
            audio = container.add_stream("aac", rate=8000)
            for start in range(0, 8192, 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 8000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
        if cover:
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, Fraction(1, 1)
            packet.is_keyframe = True
            container.mux(packet)
        for number, (stream, (width, height)) in enumerate(zip(videos, sizes, strict=True), start=1):
            for _ in range(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number, width, height))))
            container.mux(stream.encode(None))
    return path


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = streams(tmp_path / "cover.mp4", (112, 84), cover=True)
    with av.open(str(path)) as container:
        assert sorted(stream.width for stream in container.streams.video) == [112, 640]
    medium = opened(path)
    assert set(numbers(medium)) == {1}
    assert medium.warnings == ()


def test_of_two_videos_the_larger_is_read(tmp_path: Path) -> None:
    medium = opened(streams(tmp_path / "two.mkv", (112, 84), (224, 168)))
    assert set(numbers(medium)) == {2}
    assert medium.warnings == ("the largest of 2 video streams is read",)


def test_sound_beside_the_video_does_not_matter(tmp_path: Path) -> None:
    medium = opened(streams(tmp_path / "sound.mp4", (112, 84), sound=True))
    assert (medium.frames, medium.warnings) == (20, ())


def test_tags_that_are_no_utf8_do_not_matter(tmp_path: Path) -> None:
    path = film(tmp_path / "tags.mp4", 4)
    data = path.read_bytes()
    assert data.count(b"VideoHandler") == 1
    path.write_bytes(data.replace(b"VideoHandler", b"\xff\xfe\xe9\x80deoHandl"))
    assert numbers(opened(path)) == [0, 1, 2, 3]


def test_a_resized_frame_is_pillow_s(tmp_path: Path) -> None:
    path = film(tmp_path / "large.mkv", [numbered(9, 300, 200)] * 2, codec="ffv1", pix_fmt="bgr0")
    medium = opened(path, max_pixels=20_000)
    _, rows, columns = medium.grid
    exact = Image.fromarray(numbered(9, 300, 200)).resize((columns * 14, rows * 14), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pictures(medium)[0], np.asarray(exact))
    assert number_of(pictures(medium)[0]) == 9
