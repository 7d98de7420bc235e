"""`reflectrt verify`: a bundle against its checkpoint in PyTorch, a quantized one against what it was made from."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Bar, ExportProgress
from ..runtime.bundle import open_bundle
from ..runtime.errors import CompatibilityError, UsageError
from ..runtime.manifest import FILE_NAME
from .arguments import add_bundle, add_json, command, count, positive
from .describe import verification_line

if TYPE_CHECKING:
    from ..calibration.asking import Asking, Side
    from ..calibration.samples import Sample

DEFAULT_QUESTIONS = 100
DEFAULT_SEED = 2_000_003
"""Not a seed that anyone trains or calibrates with."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "verify",
        run,
        "hold a bundle against its checkpoint in PyTorch, or say what quantization has cost",
        "reflectrt verify bundle --against checkpoint",
    )
    add_bundle(parser)
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        required=True,
        help="the checkpoint it was exported from; for a quantized bundle also a float bundle of it",
    )
    quantized = parser.add_argument_group("quantized bundles")
    add_option = quantized.add_argument
    add_option("--samples", metavar="SAMPLES", type=Path, help="questions (as for calibrate) instead of needle sets")
    add_option(
        "--questions",
        metavar="N",
        type=positive,
        help=f"how many (default: {DEFAULT_QUESTIONS} needle questions, all of SAMPLES)",
    )
    add_option("--seed", metavar="S", type=count, default=DEFAULT_SEED, help="of needle sets (default: %(default)s)")
    add_option("--max-frames", metavar="N", type=positive, help="of each clip (default: the bundle's own)")
    add_option("--plot", metavar="FILE", type=Path, help="also draw the report (png, svg, pdf; needs matplotlib)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the figures; status 1 where they do not agree."""
    if open_bundle(arguments.bundle).manifest.recipe is not None:
        return _run_quantized(arguments)
    try:
        from ..bench.verify import check_memory, check_source, verify
        from ..export.checkpoint import Checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(f"verify needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    checkpoint = Checkpoint.open(arguments.against)
    check_source(arguments.bundle, checkpoint)
    check_memory(checkpoint.parameters)
    record = verify(arguments.bundle, checkpoint.path, progress=lambda side: print(side, file=sys.stderr))
    print(json.dumps(asdict(record)) if arguments.json else verification_line(record))
    return 0 if record.passed else 1


def _run_quantized(arguments: argparse.Namespace) -> int:
    """Ask both bundles the same questions; the report goes into the quantized bundle's manifest, too."""
    from ..calibration import accuracy
    from ..calibration.asking import Asking
    from ..calibration.plot import check_plot, write_plot
    from ..calibration.record import record
    from ..calibration.render import render

    if arguments.plot:
        check_plot(arguments.plot)
    how = Asking(max_frames=arguments.max_frames)
    with tempfile.TemporaryDirectory() as scratch:
        plain_bundle = _plain_bundle(arguments.against, Path(scratch))
        _check_same_source(arguments.bundle, plain_bundle)
        samples = _samples(arguments, Path(scratch))
        plain = _side(plain_bundle, samples, how, "float")
        quantized = _side(arguments.bundle, samples, how, "quantized")
    report = accuracy.compare(quantized, plain, samples)
    record(arguments.bundle, accuracy.verification(report))
    if arguments.plot:
        write_plot(report, arguments.plot)
    print(accuracy.to_json(report) if arguments.json else "\n".join(render(report)))
    return 0 if report.passed() else 1


def _side(bundle: Path, samples: list[Sample], how: Asking, name: str) -> Side:
    from ..calibration.asking import ask_apart

    bar = Bar(name, sys.stderr)
    try:
        return ask_apart(bundle, samples, how, bar.update)
    finally:
        bar.clear()


def _plain_bundle(against: str, scratch: Path) -> Path:
    """The float bundle to compare with: the one given, or a checkpoint's, exported for the occasion."""
    if (Path(against) / FILE_NAME).is_file():
        return Path(against)
    try:
        from ..export.bundle import ExportPlan, export_bundle
        from ..export.checkpoint import Checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(f"verify needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    with ExportProgress() as progress:
        export_bundle(Checkpoint.open(against), scratch / "float", ExportPlan(), progress)
    return scratch / "float"


def _check_same_source(bundle: Path, plain: Path) -> None:
    ours, theirs = open_bundle(bundle).manifest, open_bundle(plain).manifest
    if theirs.recipe is not None:
        raise UsageError(f"{plain} is quantized as well; pass the checkpoint or a float bundle of it")
    if ours.source.fingerprint != theirs.source.fingerprint:
        raise CompatibilityError(
            f"{bundle} was exported from {ours.source.name} ({ours.source.fingerprint[:12]}), {plain} from "
            f"{theirs.source.name} ({theirs.source.fingerprint[:12]}); pass the checkpoint that it was made from"
        )


def _samples(arguments: argparse.Namespace, scratch: Path) -> list[Sample]:
    """The questions: those given, or two of three from pictures and one of three from films."""
    from ..calibration.samples import gather_samples

    if arguments.samples:
        return gather_samples(arguments.samples)[: arguments.questions]
    from ..bench.evaluate import generated

    total = arguments.questions or DEFAULT_QUESTIONS
    films = total // 3
    counts = {"needle-image": total - films, "needle-video": films}
    bar = Bar("drawing", sys.stderr)
    found: list[Sample] = []
    for task, number in counts.items():
        for sample in generated(task, arguments.seed, number, scratch / task, True, ()) if number else ():
            found.append(sample)
            bar.update(len(found), total)
    bar.clear()
    return found
