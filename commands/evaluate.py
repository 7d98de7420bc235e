"""`reflectrt evaluate`: a benchmark through a bundle."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..progress import Bar
from ..runtime import load
from ..runtime.errors import UsageError
from .arguments import add_bundle, add_device, add_json, command, count, positive

TASKS = ("needle-image", "needle-video", "samples")
DEFAULT_LIMIT = 100


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "evaluate",
        run,
        "measure a bundle's accuracy on a benchmark",
        "reflectrt evaluate needle-image bundle --seed 7 --limit 100 --out results",
    )
    add = parser.add_argument
    add("task", metavar="TASK", choices=TASKS, help="needle-image, needle-video, or samples (those of --data)")
    add_bundle(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data", metavar="DIR", type=Path, help="a folder with samples.jsonl, as --write-media leaves it"
    )
    where.add_argument(
        "--seed", metavar="S", type=count, default=0, help="draw the questions of this seed (default: 0)"
    )
    add("--out", metavar="DIR", type=Path, required=True, help="where predictions.jsonl and metrics.json go")
    add("--steps", metavar="K", type=count, help="reflection steps (default: the checkpoint's)")
    add(
        "--limit",
        metavar="N",
        type=positive,
        help=f"questions at most (default: {DEFAULT_LIMIT} of a seed, all of a folder)",
    )
    add("--write-media", action="store_true", help="keep the media, and a samples.jsonl about them, in --out")
    add_device(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, score, and print the accuracy. A run that was cut short goes on where it was."""
    from ..bench import evaluate as bench
    from ..calibration.samples import read_samples

    if arguments.task == "samples" and arguments.data is None:
        raise UsageError("the task samples needs questions; pass --data DIR with a samples.jsonl in it")
    model = load(arguments.bundle, arguments.device)
    listed = read_samples(arguments.data)[: arguments.limit] if arguments.data else None
    limit = len(listed) if listed is not None else arguments.limit or DEFAULT_LIMIT
    data = str(arguments.data) if arguments.data else f"seed {arguments.seed}"
    record = bench.Run(arguments.task, model.bundle.sha256, data, limit, arguments.steps)
    done = bench.resume(arguments.out, record)
    known = {prediction.id for prediction in done}
    bar = Bar("asking", sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out if arguments.write_media else Path(scratch)
        samples = (
            (sample for sample in listed if sample.id not in known)
            if listed is not None
            else bench.generated(arguments.task, arguments.seed, limit, folder, arguments.write_media, known)
        )
        metrics = bench.evaluate(model, samples, record, done, arguments.out, bar.update)
    bar.clear()
    _show(metrics, arguments.json)
    return 0


def _show(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(metrics))
        return
    rows = {"all": metrics} | metrics["by_category"]
    for name, row in rows.items():
        low, high = row["interval_95"]
        print(f"{name:18} {row['correct']:5} of {row['total']:5}  {row['accuracy']:6.1%}  ({low:.1%} to {high:.1%})")
    for line in metrics["unread"]:
        print(f"warning: counted as wrong: {line}", file=sys.stderr)
