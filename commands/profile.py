"""`reflectrt profile`: where the time, the bytes and the memory of an answer go."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError
from .arguments import add_bundle, add_device, add_json, command, count, positive

DEFAULT_FRAMES, DEFAULT_SIZE = 16, (640, 360)
OUTPUTS = ("trace", "csv", "markdown", "plot")


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "profile",
        run,
        "measure where the time, the bytes and the memory of an answer go",
        "reflectrt profile bundle --frames 64 --size 1280x720 --trace trace.json",
    )
    add_bundle(parser)
    _add_workload(parser)
    _add_outputs(parser)
    add = parser.add_argument_group("beside it").add_argument
    add("--compare", metavar="BUNDLE", nargs="+", type=Path, default=[], help="other bundles, measured alternately")
    add("--against", metavar="CHECKPOINT", help="PyTorch's loop over this checkpoint, in the same run")
    add(
        "--against-dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="PyTorch's precision (default: %(default)s)",
    )  # fmt: skip
    add("--unverified", action="store_true", help="profile a bundle that has not passed a comparison with PyTorch")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    add("--media", metavar="FILE", type=Path, help="a video or image (default: made up, see --frames and --size)")
    add(
        "--frames",
        metavar="N",
        type=positive,
        help=f"frames of a made-up video, 1: an image (default: {DEFAULT_FRAMES})",
    )
    add("--size", metavar="WxH", type=size, help="pixels of its frames (default: 640x360)")
    add(
        "--question-tokens", metavar="N", type=positive, default=64,
        help="length of the question, at least what its template takes (default: %(default)s)",
    )  # fmt: skip
    add("--steps", metavar="K", type=count, help="reflection steps (default: the checkpoint's)")
    add("--runs", metavar="N", type=positive, default=10, help="measured rounds (default: %(default)s)")
    add("--warm-up", metavar="N", type=count, default=2, help="rounds before (default: %(default)s)")
    add("--threads", metavar="N", type=positive, help="CPU threads (default: all cores)")
    add_device(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add_json(parser)
    add("--trace", metavar="FILE", type=Path, help="write a round as a Chrome trace (ui.perfetto.dev)")
    add("--csv", metavar="FILE", type=Path, help="write the stages as CSV")
    add("--markdown", metavar="FILE", type=Path, help="write the report as Markdown")
    add("--plot", metavar="FILE", type=Path, help="write a picture (png, svg or pdf; needs matplotlib)")


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `WxH`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 640x360")
    return int(width), int(height)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write what was asked for."""
    from ..bench.profile import plot, render, report
    from ..bench.profile.measure import Plan, measure
    from ..bench.profile.scenario import Workload

    for name in OUTPUTS:
        _check_writable(name, getattr(arguments, name))
    if arguments.plot:
        plot.check(arguments.plot)
    cores = len(os.sched_getaffinity(0))
    if (arguments.threads or 0) > cores:
        raise UsageError(f"--threads {arguments.threads} is more than this process has cores; pass {cores} or fewer")
    plan = Plan(
        Workload(_source(arguments), arguments.question_tokens, arguments.steps),
        arguments.runs,
        arguments.warm_up,
        arguments.device,
        arguments.threads or cores,
        arguments.unverified,
        arguments.against,
        arguments.against_dtype,
    )
    measured = measure([arguments.bundle, *arguments.compare], plan, _progress)
    _write(arguments, measured)
    print(json.dumps(report.to_json(measured.report)) if arguments.json else render.terminal(measured.report))
    return 0


def _source(arguments: argparse.Namespace) -> Any:
    """The medium to measure with: a file, or frames made up."""
    from ..bench.profile.media import Synthetic

    if arguments.media and (arguments.frames or arguments.size):
        raise UsageError("--media and --frames or --size name two media; pass a file or the size of a made-up one")
    if arguments.media:
        return arguments.media
    return Synthetic(arguments.frames or DEFAULT_FRAMES, *(arguments.size or DEFAULT_SIZE))


def _check_writable(name: str, file: Path | None) -> None:
    """Say before measuring that a file could not be written after it."""
    if file is None:
        return
    folder = file.parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise UsageError(f"--{name} {file} cannot be written; pass a file in a folder that exists and is writable")


def _write(arguments: argparse.Namespace, measured: Any) -> None:
    from ..bench.profile import plot, tables, trace

    report = measured.report
    writers: dict[str, Callable[[Path], object]] = {
        "trace": lambda file: file.write_text(json.dumps(trace.chrome_trace(measured.last, measured.operators))),
        "csv": lambda file: file.write_text(tables.to_csv(report)),
        "markdown": lambda file: file.write_text(tables.to_markdown(report)),
        "plot": lambda file: plot.write_plot(report, file),
    }
    for name, write in writers.items():
        file: Path | None = getattr(arguments, name)
        if file:
            try:
                write(file)
            except OSError as error:  # a disk that is full by now
                raise UsageError(f"--{name} {file} cannot be written ({error}); pass another file") from None


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}\r")
        sys.stderr.flush()
