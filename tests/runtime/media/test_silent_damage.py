"""Damage that decoders patch, or that Pillow only logs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from films import film, opened
from PIL import Image

READ = """
import sys
from pathlib import Path
from reflectrt.runtime.errors import MediaError
from reflectrt.runtime.media import ImageBudget, MediaLimits, PatchLayout, VideoBudget, open_media
budgets = {"image_budget": ImageBudget(), "video_budget": VideoBudget()}
try:
    list(open_media(Path(sys.argv[1]), layout=PatchLayout(), limits=MediaLimits(), **budgets).patches(1))
except MediaError:
    print("refused")
"""


@pytest.mark.parametrize("codec, options", [("libx264", None), ("libx265", {"x265-params": "log-level=none"})])
def test_half_the_films_with_flipped_bytes_are_reported(
    tmp_path: Path, codec: str, options: dict[str, str] | None
) -> None:
    """Not all: a stream has no check sums, and some flips only make another valid picture."""
    path = film(tmp_path / "film.mp4", wiped(), codec=codec, options=options, muxer={"movflags": "faststart"})
    assert opened(path).warnings == ()
    whole = path.read_bytes()
    assert sum(_warned(path, whole, seed) for seed in range(8)) >= 4


def wiped() -> list[np.ndarray]:
    """Twenty frames of noise, over which a brighter field grows from the left."""
    noise = np.random.default_rng(0).integers(0, 60, (240, 320, 3), dtype=np.uint8)
    bright = np.arange(320) < 16 * np.arange(1, 21)[:, None]
    return [noise + np.uint8(100) * columns[None, :, None] for columns in bright]


def _warned(path: Path, whole: bytes, seed: int) -> bool:
    data = bytearray(whole)
    for at in np.random.default_rng(seed).integers(whole.index(b"mdat") + 1000, len(whole), 20):
        data[at] ^= 0xFF
    path.write_bytes(data)
    medium = opened(path)
    assert sum(map(len, medium.patches(4))) == medium.grid[0]
    return medium.warnings != ()


def test_what_pillow_logs_is_not_printed(tmp_path: Path) -> None:
    path = tmp_path / "odd.tiff"
    Image.new("RGB", (112, 84), "navy").save(path)
    data = path.read_bytes()
    samples = data.index(b"\x15\x01\x03\x00")  # tag 277, SamplesPerPixel, a short
    path.write_bytes(data[: samples + 8] + b"\x00\x08" + data[samples + 10 :])  # 2048 of them
    ended = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("refused\n", "")
