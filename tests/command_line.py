"""The command line as its tests run it."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
from reflectrt.cli import main


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Exit status, stdout, and the lines on stderr."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's way to end
        status = int(stop.code or 0)
    out, err = capfd.readouterr()
    return status, out, err.splitlines()


def fails(capfd: pytest.CaptureFixture[str], status: int, message: str, *arguments: object) -> None:
    """The command ends with this status and one line `error: ...`, which holds `message`, and prints nothing."""
    found, out, lines = run(capfd, *arguments)
    assert (found, out) == (status, "")
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]


def film(path: Path) -> None:
    """Two seconds of noise at 25 frames a second, with the index in front, so that it can be cut short."""
    random = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for _ in range(50):
            picture = random.integers(0, 256, (84, 112, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
