"""How much faster and smaller a quantized decoder is on this CPU: ours against our float32 and PyTorch, in one run.

    python -m reflectrt.bench.quantized_speed [--work DIR] [--out FILE] [--threads N] [--rounds N] [--rivals TYPE ...]

A random checkpoint of the shape of Qwen2.5 0.5B (hidden 896, 24 layers, 14 heads over 2, MLP 4,864, vocabulary
151,936) is calibrated on random pictures, smoothed, and exported in float32, int8 and int4. All subjects take turns
in one process, so that a busy machine slows them alike; medians count. Every subject sees the same embeddings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from ..calibration.calibrate import Settings, make_recipe, observe
from ..calibration.samples import Sample
from ..export.bundle import ExportPlan, export_bundle
from ..export.checkpoint import Checkpoint
from .profile.environment import describe
from .quantized_subjects import OurDecoder, Subject, TorchDecoder
from .random_checkpoint import RandomShape, make_checkpoint

SHAPE = RandomShape(
    heads=14, kv_heads=2, layers=24, hidden=896, mlp=4864, vocab=151_936, tied=True, dtype="bfloat16", vision_depth=2
)
PREFILL_TOKENS, CONTEXT = 1024, 2048
STEPS_A_ROUND = 8
PICTURES = 8
INT8 = Settings("int8", "minmax", smooth="auto")
BASE = "float32"


class Steps:
    """Tells on stderr how far the preparation is."""

    def stage(self, name: str) -> None:
        """A new stage begins."""
        print(f"  {name}", file=sys.stderr)

    def weights(self, done: int, total: int) -> None:
        """Not told: stages are short."""

    def samples(self, done: int, total: int) -> None:
        """So many samples are seen."""
        print(f"  sample {done} of {total}", file=sys.stderr)


def prepare(work: Path) -> dict[str, Path]:
    """Checkpoint and bundles by name, made in `work` where they are not there yet."""
    checkpoint = work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        make_checkpoint(checkpoint, like=SHAPE)
    opened, calibration = Checkpoint.open(checkpoint), work / "calibration"
    folders = {"checkpoint": checkpoint, BASE: calibration / "float", "int8": work / "int8", "int4": work / "int4"}
    if not folders["int8"].exists():
        samples = _random_pictures(work / "pictures")
        recipe = make_recipe(opened, samples, INT8, observe(opened, samples, INT8, calibration, Steps()))
        export_bundle(opened, folders["int8"], ExportPlan(precision="int8", recipe=recipe), Steps())
    if not folders["int4"].exists():
        export_bundle(opened, folders["int4"], ExportPlan(precision="int4"), Steps())
    return folders


def _random_pictures(folder: Path) -> list[Sample]:
    folder.mkdir(exist_ok=True)
    random, samples = np.random.default_rng(0), []
    for number in range(PICTURES):
        file = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (112, 112, 3), np.uint8)).save(file)
        samples.append(Sample(str(number), (file,), f"Colour {number}?", ("red", "green", "blue"), "A", ""))
    return samples


def time_all(subjects: Sequence[Subject], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a prefill and of a step, by subject."""
    embeddings = np.random.default_rng(0).standard_normal((1, PREFILL_TOKENS, SHAPE.width)).astype(np.float32)
    prefill = _in_turns(subjects, rounds, 1, lambda subject: subject.prefill(embeddings))
    for subject in subjects:
        subject.fill(embeddings, CONTEXT - 1)
    step = _in_turns(subjects, 2 * rounds, STEPS_A_ROUND, lambda subject: subject.step())
    return {s.name: {"prefill_ms": prefill[s.name], "step_ms": step[s.name]} for s in subjects}


def _in_turns(
    subjects: Sequence[Subject], rounds: int, repeats: int, act: Callable[[Subject], None]
) -> dict[str, float]:
    """Each subject warms up once a round: the one before it has emptied the processor's caches."""
    seconds: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for _ in range(rounds):
        for subject in subjects:
            if repeats > 1:
                act(subject)
            for _ in range(repeats):
                start = perf_counter()
                act(subject)
                seconds[subject.name].append(perf_counter() - start)
    return {name: round(1e3 * median(found), 2) for name, found in seconds.items()}


def ratios(times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """How many times faster each of ours is than our float32 and than PyTorch's faster type."""
    rivals = [found for name, found in times.items() if name.startswith("torch")]
    result = {}
    for name in (name for name in times if name != BASE and not name.startswith("torch")):
        for kind in ("prefill_ms", "step_ms"):
            result[f"{name} {kind.removesuffix('_ms')}"] = {
                "against our float32": round(times[BASE][kind] / times[name][kind], 2),
                "against PyTorch": round(min(rival[kind] for rival in rivals) / times[name][kind], 2),
            }
    return result


def folder_bytes(folder: Path) -> int:
    """Size of a bundle's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(work: Path, threads: int, rounds: int, types: Sequence[str]) -> dict[str, Any]:
    """Everything in one dictionary, ready for JSON."""
    folders, capacity = prepare(work), CONTEXT + 1
    load = os.getloadavg()[0]
    ours = [OurDecoder(name, folders[name], threads, capacity) for name in (BASE, "int8", "int4")]
    rivals = [TorchDecoder(f"torch {t}", folders["checkpoint"], t, threads) for t in types]
    times = time_all([*ours, *rivals], rounds)
    sizes = {name: folder_bytes(folders[name]) for name in (BASE, "int8", "int4")}
    return {
        "environment": asdict(describe("cpu", threads, load, with_torch=True)),
        "settings": {
            "shape": asdict(SHAPE),
            "prefill_tokens": PREFILL_TOKENS,
            "context": CONTEXT,
            "rounds": rounds,
            "recipe": asdict(INT8),
        },
        "median": times,
        "times_faster": ratios(times),
        "bundle_mb": {name: round(size / 1e6, 1) for name, size in sizes.items()},
        "bundle_share_of_float32": {name: round(size / sizes[BASE], 3) for name, size in sizes.items()},
    }


def main() -> None:
    """Print the figures as JSON, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keeps checkpoint and bundles (5 GB) for the next run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rivals",
        nargs="+",
        default=["float32", "bfloat16"],
        help="PyTorch's types; leave bfloat16 out on processors without it, where it takes minutes",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measure(work, arguments.threads, arguments.rounds, arguments.rivals), indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
