"""`python -m reflectrt.bench.gpu.reading --work DIR --out FILE --source FILM`: a film from its file to an answer.

Reading by the CPU's decoders and by NVDEC, alone and beside the vision encoder and the prefill; whether both give
the same patches; and how the wall time of the whole compares with its slowest stage. DIR gets a film of 256 s in 1080p,
made of a shorter one, and the 7B shape with random weights where it is not there yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

import av
import numpy as np
from av.video.frame import VideoFrame

from ...runtime.media import VideoDecoder
from ...runtime.options import MediaOptions
from ...runtime.session import Model
from .measure import OPTIONS, QUESTION, STEPS
from .random_bundle import open_prepared, prepare
from .report import environment

SIZE, RATE, SECONDS = (1920, 1080), 30, 256
"""Pixels, frames a second, and what the published evaluation looks at in full: two frames a second, 512 in all."""
FRAME_PIXELS = 168 * 336
"""Of a frame as the model sees it: 12 x 24 patches, as in the other measurements."""


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="python -m reflectrt.bench.gpu.reading", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the film and 17 GB of random weights")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--source", type=Path, required=True, help="a film whose frames fill the long one")
    parser.add_argument("--runs", type=int, default=3, help="of each kind, after a first (default: %(default)s)")
    parser.add_argument("--precision", default="bf16", help="of the bundle (default: %(default)s)")
    arguments = parser.parse_args()
    film = arguments.work / "film.mp4"
    if not film.exists():
        write_film(arguments.source, film)
    model = open_prepared(prepare(arguments.work, arguments.precision))
    facts = {"environment": environment(), "film": [*SIZE, RATE, SECONDS], "runs": arguments.runs}
    results = facts | measure(model, film, arguments.runs)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def write_film(source: Path, film: Path) -> None:
    """The source's frames over and over, in H.264, at its encoder's settings for speed and few bits."""
    with av.open(str(source)) as container:
        frames = [frame.reformat(*SIZE, format="yuv420p") for frame in container.decode(video=0)]
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index, frame in enumerate(islice(_around(frames), RATE * SECONDS)):
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _around(frames: list[VideoFrame]) -> Iterator[VideoFrame]:
    """Forwards and backwards, so that no cut makes a key frame."""
    while True:
        yield from frames
        yield from reversed(frames)


def measure(model: Model, film: Path, runs: int) -> dict[str, Any]:
    """Seconds by decoder, and whether their patches are the same. Raises ResourceError where NVDEC is missing."""
    found: dict[str, Any] = {}
    patches = {}
    for decoder in get_args(VideoDecoder):
        reading, patches[decoder] = read(model, film, decoder, runs)
        opening = [answer(model, film, decoder) for _ in range(runs + 1)][1:]
        found[decoder] = {
            "read_alone_s": reading,
            "stages_s": {name: median(run[name] for run in opening) for name in opening[0]},
        }
    difference = np.abs(patches["cpu"].astype(np.int16) - patches["nvdec"])
    return {"decoders": found, "largest_difference_of_patches": int(difference.max())}


def _options(decoder: VideoDecoder) -> dict[str, Any]:
    return {"max_pixels": FRAME_PIXELS, "decoder": decoder}


def read(model: Model, film: Path, decoder: VideoDecoder, runs: int) -> tuple[float, np.ndarray]:
    """Median seconds of opening and reading the film, nothing else running; its patches."""
    times = []
    for _ in range(runs):
        start = perf_counter()
        medium = model.open_medium(film, MediaOptions(**_options(decoder)))
        patches = np.concatenate(list(medium.patches(8)))
        times.append(perf_counter() - start)
    return median(times), patches


def answer(model: Model, film: Path, decoder: VideoDecoder) -> dict[str, float]:
    """Seconds of each stage of a cold answer, and of the whole."""
    return model.open(film, **_options(decoder)).ask(QUESTION, OPTIONS, steps=STEPS).timings


def table(results: dict[str, Any]) -> str:
    """One row a decoder."""
    names = ("read", "vision", "prefill", "reflect", "decode")
    heads = ("decoder", "read alone", *names, "sum", "wall", "wall over slowest")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results["decoders"].items():
        stages, wall = [found["stages_s"][stage] for stage in names], found["stages_s"]["total"]
        times = [found["read_alone_s"], *stages, sum(stages), wall]
        cells = " | ".join(f"{time:.2f} s" for time in times)
        lines.append(f"| {name} | {cells} | {wall / max(stages):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
