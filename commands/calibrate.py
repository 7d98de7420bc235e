"""`reflectrt calibrate`: checkpoint + samples -> recipe."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import CalibrationProgress
from ..runtime.errors import UsageError
from .arguments import command, positive, share

if TYPE_CHECKING:
    from ..export.recipe import Recipe

PRECISIONS = ("int8", "fp8", "int4", "int8-weights")
METHODS = ("minmax", "percentile", "entropy", "mse")
DEFAULT_SMOOTH = {"int8": "auto"}
"""Smoothing by precision; fp8 scales by itself, weights alone have no activations to smooth."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "calibrate",
        run,
        "find out from samples how to quantize a checkpoint",
        "reflectrt calibrate checkpoint samples.jsonl recipe.json --precision int8",
    )
    add_argument = parser.add_argument
    add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder or hub id (qwen2_5_vl)")
    add_argument(
        "samples",
        metavar="SAMPLES",
        type=Path,
        help="a samples.jsonl (media, question, options, label), a folder with some, or a folder of media",
    )
    add_argument("recipe", metavar="RECIPE", type=Path, help="the file to write; work in progress lies beside it")
    add_argument("--precision", choices=PRECISIONS, required=True, help="what the bundle will compute in")
    add_argument("--method", choices=METHODS, default="minmax", help="how ranges are cut (default: %(default)s)")
    smoothing = parser.add_mutually_exclusive_group()
    smoothing.add_argument(
        "--smooth",
        metavar="A",
        type=alpha,
        help="move outliers from activations (0) to weights (1), or `auto`: what harms each group of layers least; "
        "default: auto for int8, else none",
    )
    smoothing.add_argument("--no-smooth", action="store_true", help="move none")
    add_argument(
        "--keep", metavar="PATTERN", action="append", default=[], help="layers that stay as they are (may be repeated)"
    )
    add_argument(
        "--eight-bit-weights",
        metavar="PATTERN",
        action="append",
        default=[],
        help="layers that keep 8 bits of weight and float activations, whatever the precision (may be repeated)",
    )
    add_argument("--kv-cache", choices=("int8", "fp8"), help="quantize the KV cache too")
    add_argument(
        "--budget",
        metavar="SHARE",
        type=share,
        help="measure each layer's own damage, and give the worst 8 bits of weight and float activations, up to this "
        "share of the weights",
    )
    add_argument("--limit", metavar="N", type=positive, help="samples at most (default: all)")
    add_argument("--max-frames", metavar="N", type=positive, default=32, help="of each clip (default: %(default)s)")
    add_argument("--force", action="store_true", help="replace an existing recipe")


def alpha(text: str) -> float | str:
    """argparse type of `--smooth`: a share, or `auto`."""
    return text if text == "auto" else share(text)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate as the parsed options say. A run that was cut short goes on where it was."""
    try:
        from ..calibration.calibrate import Settings, float_bundle, make_recipe, matching, observe
        from ..calibration.samples import gather_samples
        from ..calibration.sensitivity import measure, propose, spare
        from ..export.checkpoint import Checkpoint
        from ..export.recipe import dump
    except ModuleNotFoundError as error:
        raise UsageError(f"calibrate needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    _check_target(arguments)
    samples = gather_samples(arguments.samples)[: arguments.limit]
    checkpoint = Checkpoint.open(arguments.checkpoint)
    smooth = None if arguments.no_smooth else arguments.smooth
    if smooth is None and not arguments.no_smooth:
        smooth = DEFAULT_SMOOTH.get(arguments.precision)
    settings = Settings(
        arguments.precision,
        arguments.method,
        smooth,
        tuple(arguments.keep),
        tuple(arguments.eight_bit_weights),
        arguments.kv_cache,
        arguments.max_frames,
    )
    for option, patterns in (("--keep", settings.keep), ("--eight-bit-weights", settings.eight_bit_weights)):
        matching(checkpoint, patterns, option)  # before hours of work, not after
    work = arguments.recipe.with_name(f"{arguments.recipe.name}.work")
    with CalibrationProgress() as progress:
        seen = observe(checkpoint, samples, settings, work, progress)
        progress.stage("ranges")
        recipe = make_recipe(checkpoint, samples, settings, seen)
        if arguments.budget is not None:
            progress.stage("sensitivity")
            damage = measure(float_bundle(work), samples, recipe, progress.samples)
            recipe = spare(recipe, damage, propose(checkpoint, damage, arguments.budget))
    partial = arguments.recipe.with_name(f"{arguments.recipe.name}.partial")
    partial.write_text(dump(recipe), encoding="utf-8")
    partial.replace(arguments.recipe)
    shutil.rmtree(work)
    print(_summary(arguments.recipe, recipe), file=sys.stderr)
    return 0


def _check_target(arguments: argparse.Namespace) -> None:
    target = arguments.recipe
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder; create it first")
    if target.exists() and not arguments.force:
        raise UsageError(f"{target} exists; pass --force to replace it, or choose another name")


def _summary(file: Path, recipe: Recipe) -> str:
    linears = sum(len(graph.linears) for graph in recipe.graphs.values())
    fed_back = recipe.origin.seen.get("decoder from hidden", 0) if recipe.origin else 0
    samples = recipe.origin.samples if recipe.origin else 0
    return (
        f"{file}: {linears} layers in {recipe.precision}, {len(recipe.folds)} groups smoothed, "
        f"from {samples} samples with {fed_back} reflection steps"
    )
