import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from films import film, numbered, opened, pictures
from PIL import Image
from reflectrt.runtime.errors import LimitError, MediaError, ReflectRTError
from reflectrt.runtime.media import MediaLimits

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
TEXTS = {
    "text": "this is no film\n" * 50,
    "playlist": PLAYLIST.format(target="http://127.0.0.1:9/a.ts"),
    "local playlist": PLAYLIST.format(target="file:///etc/passwd"),
    "concat script": "ffconcat version 1.0\nfile '/etc/hostname'\n",
    "session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "vector drawing": "<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "DASH": "<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:9/</BaseURL></MPD>",
    "empty": "",
}


@pytest.mark.parametrize("ending", ["mp4", "ts", "png"])
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_neither_video_nor_image_never_reaches_a_decoder(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_text(TEXTS[name])
    with pytest.raises(MediaError, match="neither a video nor an image") as caught:
        opened(path)
    assert not any(len(word) > 5 and word in str(caught.value) for word in TEXTS[name].split())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "not a regular file"),
        ("/etc", "is a directory"),
        ("http://127.0.0.1:9/film.mp4", "no such file"),
        ("subfile,,start,0,end,0,,:/etc/passwd", "no such file"),
        ("concat:a.mp4|b.mp4", "no such file"),
        ("data:video/mp4;base64,AAAA", "no such file"),
        ("file:///etc/passwd", "no such file"),
        ("pipe:0", "no such file"),
        ("-", "no such file"),
        ("frame%03d.png", "no such file"),
        ("x" * 300, "file name too long"),
        ("nul\0.mp4", "not a path"),
    ],
)
def test_what_is_no_file_is_refused(path: str, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        opened(Path(path))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        opened(tmp_path / "pipe.mp4")


NAMES = [
    "with space.mp4",
    "line\nbreak.mp4",
    "frame%03d.mp4",
    "-i.mp4",
    "http:example.mp4",
    "concat:a|b.mp4",
    "фильм🎬.mp4",
    "quote'\".mp4",
    "comma,colon:.mp4",
    "none",
    "\udcff.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_opened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "film.mp4", 2).rename(tmp_path / name)
    assert len(pictures(opened(tmp_path / name))) == 2
    monkeypatch.chdir(tmp_path)
    assert len(pictures(opened(Path(name)))) == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_error_about_any_name_is_one_line_that_can_be_printed(tmp_path: Path, name: str) -> None:
    for content in (b"text", (b"\0\0\0\x08moov" * 9), b"\x89PNG\r\n\x1a\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as caught:
            opened(tmp_path / name)
        assert str(caught.value).isprintable()


def test_a_symlink_to_a_video_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(film(tmp_path / "film.mp4", 2))
    assert opened(tmp_path / "link.mp4").frames == 2


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts", "film.flv", "film.h264"])
def test_frames_over_the_limit_are_refused(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name, [numbered(0, 640, 480)] * 2)
    with pytest.raises(LimitError, match=rf"{name} is 640 x 480 h264, over the limit.*scale it down"):
        opened(path, limits=MediaLimits(frame_pixels=300_000))


def test_frames_that_grow_over_the_limit_are_not_decoded(tmp_path: Path) -> None:
    parts = [film(tmp_path / f"{w}.h264", [numbered(1, w, h)] * 6) for w, h in ((112, 84), (640, 480))]
    (tmp_path / "grows.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    medium = opened(tmp_path / "grows.h264", limits=MediaLimits(frame_pixels=100_000))
    assert {picture.shape for picture in pictures(medium)} == {(84, 112, 3)}
    assert medium.frames <= 6
    assert medium.warnings[-1] == f"only {medium.frames} of 12 frames could be read: the file is damaged"


def test_more_frames_than_the_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="more than 10 frames; pass a shorter cut"):
        opened(film(tmp_path / "film.mp4", 20), limits=MediaLimits(frames=10))


IN_A_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from films import opened
from pathlib import Path

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

media = [Path(path) for path in sys.argv[3:]]
for chunk in opened(Path(sys.argv[2])).patches(2):
    pass
before = peak_kib()
for path in media:
    try:
        for chunk in opened(path).patches(2):
            pass
    except Exception as error:
        print(type(error).__name__, end=" ")
print((peak_kib() - before) // 1024)
"""


def growth(warm: Path, *paths: Path) -> tuple[list[str], int]:
    """Errors, and MiB by which a process that has read `warm` grows when it reads `paths`."""
    command = [sys.executable, "-c", IN_A_CHILD, str(Path(__file__).parent), str(warm), *map(str, paths)]
    *errors, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return errors, int(grown)


def huge(path: Path) -> Path:
    """One grey frame of 8192 x 6144 pixels (75 MB) in 150 kB."""
    grey = np.full((6144, 8192), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 6144, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray").reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def remuxed(path: Path, target: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(path)) as source, av.open(str(target), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                sink.mux(packet)
    return target


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_huge_frame_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    first = huge(tmp_path / "huge.mp4")
    others = [remuxed(first, tmp_path / f"huge.{ending}") for ending in ("mkv", "flv", "ts")]
    errors, grown = growth(film(tmp_path / "warm.mp4", 4), first, *others)
    assert errors == ["LimitError"] * 4
    assert grown < 50


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    fields = [numbered(i, 448, 336) for i in range(20)]
    short = film(tmp_path / "short.mp4", fields, codec="mpeg4")
    long = film(tmp_path / "long.mp4", fields * 10, codec="mpeg4")
    errors, grown = growth(short, long)
    assert errors == []
    assert grown < 30  # all patches of the long one are 90 MB


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    good = film(tmp_path / "film.mp4", 4)
    bad = [tmp_path / name for name in ("text.mp4", "cut.mp4", "cut.png", "bomb.png")]
    bad[0].write_text("no film")
    bad[1].write_bytes(good.read_bytes()[:300])
    Image.new("RGB", (56, 56)).save(tmp_path / "whole.png")
    bad[2].write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("L", (2000, 2000)).save(bad[3])
    limits = MediaLimits(image_pixels=1_000_000)
    pictures(opened(good))
    before = open_files()
    for _ in range(40):
        next(opened(good).patches(1))  # and never closed
        for path in bad:
            with pytest.raises((LimitError, MediaError)):
                pictures(opened(path, limits=limits))
    assert open_files() <= before


def seeds(folder: Path) -> list[Path]:
    """Small good media to damage."""
    noise = [np.random.default_rng(i).integers(0, 256, (56, 84, 3), dtype=np.uint8) for i in range(10)]
    pages = [Image.fromarray(picture) for picture in noise]
    found = [film(folder / name, noise) for name in ("film.mp4", "film.mkv", "film.ts")]
    found += [film(folder / "film.avi", noise, codec="mpeg4", options={"bf": "2"})]
    for ending in ("jpg", "png", "tif", "webp"):
        pages[0].save(folder / f"image.{ending}")
        found.append(folder / f"image.{ending}")
    pages[0].save(folder / "image.gif", save_all=True, append_images=pages[1:4])
    return [*found, folder / "image.gif"]


def _flip(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.choice([1, 5, 50])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return data


def _head(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.choice([1, 3, 8])):
        data[dice.randrange(12, min(len(data), 600))] = dice.choice([0, 1, 127, 128, 255])
    return data


def _tail(data: bytearray, dice: random.Random) -> bytearray:
    start = max(0, len(data) - 1200)
    for _ in range(dice.choice([1, 3, 8])):
        data[dice.randrange(start, len(data))] = dice.choice([0, 1, 127, 128, 255])
    return data


def _shorten(data: bytearray, dice: random.Random) -> bytearray:
    return data[: dice.randrange(len(data))]


def _remove(data: bytearray, dice: random.Random) -> bytearray:
    at = dice.randrange(len(data))
    return data[:at] + data[at + dice.randrange(1, 400) :]


def _repeat(data: bytearray, dice: random.Random) -> bytearray:
    at = dice.randrange(len(data))
    return data[:at] + data[at : at + dice.randrange(1, 400)] + data[at:]


DAMAGE: list[Callable[[bytearray, random.Random], bytearray]] = [_flip, _head, _tail, _shorten, _remove, _repeat]


def test_random_damage_ends_in_a_picture_or_one_of_our_errors(tmp_path: Path) -> None:
    dice = random.Random(int(os.environ.get("REFLECTRT_FUZZ_SEED", "0")))
    good = [(path, path.read_bytes()) for path in seeds(tmp_path)]
    for number in range(int(os.environ.get("REFLECTRT_FUZZ_CASES", "150"))):
        path, data = good[number % len(good)]
        changed = tmp_path / f"changed{path.suffix}"
        changed.write_bytes(bytes(dice.choice(DAMAGE)(bytearray(data), dice)))
        try:
            medium = opened(changed, max_frames=dice.choice([2, 8, 64]))
            found = pictures(medium)
        except ReflectRTError as error:
            assert "\n" not in str(error), str(error)
        else:
            assert len(found) == medium.grid[0] * 2 > 0
