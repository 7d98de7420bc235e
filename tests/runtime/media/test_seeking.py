"""Sparse sampling gives the frames that decoding everything gives, in every container."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import film, number_of, numbers, opened
from reflectrt.runtime.media import MediaLimits
from reflectrt.runtime.media import container as media_container
from reflectrt.runtime.media.decoder import Decoder
from reflectrt.runtime.media.index import read_index

OPEN_GOP = {"bf": "2", "x264-params": "scenecut=0:keyint=8:min-keyint=8:open-gop=1:bframes=2:b-adapt=0"}
REFRESH = {"x264-params": "scenecut=0:keyint=infinite:intra-refresh=1"}
X265 = {"x265-params": "keyint=8:min-keyint=8:open-gop=1:log-level=none:scenecut=0"}
VP9 = {"g": "8", "deadline": "realtime", "cpu-used": "8"}
MPEG = {"g": "8", "bf": "2"}
FILMS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.avi": {},
    "h264.flv": {},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "open.mp4": {"options": OPEN_GOP},
    "open.mkv": {"options": OPEN_GOP},
    "open.ts": {"options": OPEN_GOP},
    "refresh.mp4": {"options": REFRESH},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "vp9.ivf": {"codec": "libvpx-vp9", "options": VP9},
    "ffv1.mkv": {"codec": "ffv1"},
    "mpeg4.mp4": {"codec": "mpeg4", "options": MPEG},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "8"}},
    "reordered.avi": {"codec": "mpeg4", "options": MPEG},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg2.ts": {"codec": "mpeg2video", "options": MPEG},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": MPEG},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"g": "8"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "8"}},
    "raw.y4m": {"codec": "rawvideo"},
}
BARE: dict[str, dict[str, Any]] = {
    "bare.h264": {},
    "bare.hevc": {"codec": "libx265", "options": X265},
    "bare.m2v": {"codec": "mpeg2video", "options": MPEG},
}


@pytest.mark.parametrize("name", FILMS)
def test_every_frame_is_the_one_asked_for(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, **FILMS[name])
    whole, sparse, middle = (opened(path, **how) for how in ({}, {"max_frames": 6}, {"max_frames": 2, "start_s": 1.0}))
    assert numbers(whole) == list(range(40))
    assert numbers(sparse) == np.round(np.linspace(0, 39, 6)).tolist()
    assert numbers(middle)[0] == 25
    assert whole.warnings == sparse.warnings == middle.warnings == ()
    assert whole.second_per_grid == pytest.approx(0.08)


@pytest.mark.parametrize("name", BARE)
def test_a_bare_stream_is_counted_at_its_rate_and_says_so(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, **BARE[name])
    whole, sparse = opened(path), opened(path, max_frames=6)
    assert numbers(whole) == list(range(40))
    assert numbers(sparse) == np.round(np.linspace(0, 39, 6)).tolist()
    assert whole.warnings == ("the file has no times; taking 25 frames a second",)


def decoded_for(path: Path, demuxer: str, wanted: range, *, thinned: bool = False) -> int:
    """How many frames were decoded to get those at these positions."""
    index = read_index(path, demuxer, MediaLimits())
    with media_container.opened(path, demuxer, MediaLimits()) as (container, stream):
        decoder = Decoder(container, stream, index, [int(index.times[at]) for at in wanted] if thinned else None)
        found = [decoder.frame_at(int(index.times[at])) for at in wanted]
        assert [frame and number_of(frame.to_ndarray(format="rgb24")) for frame in found] == list(wanted)
        return decoder.decoded


@pytest.mark.parametrize(
    ("name", "demuxer"),
    [("film.mp4", "mov"), ("film.mkv", "matroska"), ("film.ts", "mpegts"), ("film.flv", "flv"), ("film.avi", "avi")],
)
def test_key_frames_are_sought_and_what_lies_between_is_not_decoded(tmp_path: Path, name: str, demuxer: str) -> None:
    how = {"codec": "mpeg4", "options": {"g": "8"}} if demuxer == "avi" else {}
    path = film(tmp_path / name, 200, **how)  # groups of 8 frames
    assert decoded_for(path, demuxer, range(4, 200, 32)) <= 7 * 8 + 8
    assert decoded_for(path, demuxer, range(0, 200, 12)) <= 17 * 8
    assert decoded_for(path, demuxer, range(0, 200, 3)) <= 200


PYRAMID = {"x264-params": "scenecut=0:keyint=64:bframes=7:b-adapt=0:b-pyramid=normal:ref=4"}


@pytest.mark.parametrize(("name", "demuxer"), [("film.mp4", "mov"), ("film.mkv", "matroska"), ("film.ts", "mpegts")])
def test_frames_that_none_is_predicted_from_are_not_decoded(tmp_path: Path, name: str, demuxer: str) -> None:
    path = film(tmp_path / name, 200, options=PYRAMID)
    for step in (3, 7, 16):
        wanted = range(0, 200, step)
        assert decoded_for(path, demuxer, wanted, thinned=True) < 0.75 * decoded_for(path, demuxer, wanted)


def test_every_frame_of_an_interlaced_film_is_decoded(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", 40, options={"x264-params": "tff=1:bframes=3:b-adapt=0"})
    assert decoded_for(path, "mov", range(0, 40, 3), thinned=True) == decoded_for(path, "mov", range(0, 40, 3))


def with_false_keys(path: Path, target: Path) -> Path:
    """A copy in which every frame is marked as a key frame."""
    with av.open(str(path)) as source, av.open(str(target), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.is_keyframe, packet.stream = True, stream
                sink.mux(packet)
    return target


def test_key_flags_that_lie_do_not_change_the_frames(tmp_path: Path) -> None:
    path = with_false_keys(film(tmp_path / "film.mp4"), tmp_path / "liar.mp4")
    medium = opened(path, max_frames=6)
    assert numbers(medium) == np.round(np.linspace(0, 39, 6)).tolist()
    assert medium.warnings == ()


def test_frames_that_an_edit_list_cuts_away_are_not_counted(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", options={"bf": "0", "g": "8"}, codec="mpeg4")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 4 + 4 + 4  # version and flags, entries, duration: then the time in the medium
    data[at : at + 4] = (10 * 512).to_bytes(4, "big")  # 512 ticks a frame
    path.write_bytes(bytes(data))
    medium = opened(path)
    assert numbers(medium) == list(range(10, 40))
    assert numbers(opened(path, max_frames=2)) == [10, 39]
