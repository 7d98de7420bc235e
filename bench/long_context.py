"""How long and how large: a ten-minute video and a 4096 x 4096 image through a bundle, with time and peak memory.

    python -m reflectrt.bench.long_context BUNDLE [--out FILE]

The video is a filmed clip repeated without re-encoding, the image a photograph enlarged. Each case runs in a process of
its own, because peak memory is a process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..runtime import load

MEDIA = Path(__file__).parent.parent / "assets" / "media"
MINUTES = 10
IMAGE_SIDE = 4096


def repeat_clip(source: Path, target: Path, minutes: float) -> None:
    """Write `source` over and over until it lasts `minutes`, packets copied as they are."""
    with av.open(str(source)) as clip, av.open(str(target), "w") as out:
        stream = clip.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in clip.demux(stream) if packet.size]
        length = max(int(p.pts or 0) + int(p.duration or 0) for p in packets)
        for turn in range(int(minutes * 60 / (length * float(stream.time_base or 1))) + 1):
            clip.seek(0)
            for packet in clip.demux(stream):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                    packet.stream = copy
                    out.mux(packet)


def write_image(target: Path, side: int) -> None:
    """A photograph enlarged to a square of `side` pixels."""
    with Image.open(MEDIA / "china.jpg") as photo:
        photo.resize((side, side), Image.Resampling.BICUBIC).save(target, quality=90)


def measure(bundle: Path, medium: Path) -> dict[str, Any]:
    """Open the medium, ask twice; seconds by stage, and this process's peak memory in MiB."""
    model = load(bundle)
    opened = peak_mib()
    session = model.open(medium)
    first = session.ask("What is to be seen?", ["a street", "a pagoda"])
    again = session.ask("Is it day?", ["yes", "no"])
    report = session.media[0]
    return {
        "frames": report.frames,
        "grid": report.grid,
        "visual_tokens": report.visual_tokens,
        "first_s": {stage: round(seconds, 3) for stage, seconds in first.timings.items()},
        "follow_up_s": round(again.timings["total"], 4),
        "peak_mib_after_load": round(opened),
        "peak_mib": round(peak_mib()),
    }


def peak_mib() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_all(bundle: Path) -> dict[str, Any]:
    """Both cases, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        video, image = Path(folder) / "ten-minutes.mp4", Path(folder) / "large.jpg"
        repeat_clip(MEDIA / "bikes.mp4", video, MINUTES)
        write_image(image, IMAGE_SIDE)
        return {"video, 10 minutes": _in_process(bundle, video), "image, 4096 x 4096": _in_process(bundle, image)}


def _in_process(bundle: Path, medium: Path) -> Any:
    command = [sys.executable, "-m", __spec__.name, str(bundle), "--case", str(medium)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def environment() -> dict[str, str]:
    """Where the figures come from."""
    import onnxruntime

    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "av": av.__version__,
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


def main() -> None:
    """Print the figures as JSON, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.bundle, arguments.case)))
        return
    text = json.dumps({"environment": environment(), "cases": run_all(arguments.bundle)}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
