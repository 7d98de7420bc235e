"""`reflectrt export`: checkpoint -> bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..progress import ExportProgress
from ..runtime.errors import UsageError
from .arguments import command, positive
from .describe import verification_line

TARGETS = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
FLOATS = ("fp32", "fp16", "bf16")
PRECISIONS = (*FLOATS, "int8", "int8-weights", "fp8", "int4")


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "export",
        run,
        "turn a checkpoint into a bundle",
        "reflectrt export shenxq/VisReflect-7B-Video bundle",
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`, which `optimum-cli export visreflect` shares."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face folder or hub id (qwen2_5_vl)")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder to write")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what will run it (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help="arithmetic (default: the recipe's, else fp32)")
    parser.add_argument(
        "--recipe", metavar="RECIPE", type=Path, help="what `reflectrt calibrate` wrote; int8 and fp8 need one"
    )
    parser.add_argument(
        "--max-context",
        metavar="N",
        type=positive,
        help="tokens that prompt and answer may fill (default: 32768, or the checkpoint's own where that is less)",
    )
    parser.add_argument("--no-verify", action="store_true", help="skip the comparison with PyTorch after the export")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")


def run(arguments: argparse.Namespace) -> int:
    """Export as the parsed options say, showing progress and the verification's figures on stderr."""
    try:
        from ..bench.verify import check_memory, verify
        from ..export.bundle import ExportPlan, export_bundle
        from ..export.checkpoint import Checkpoint
        from ..export.recipe import read_recipe
    except ModuleNotFoundError as error:
        raise UsageError(f"export needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    checkpoint = Checkpoint.open(arguments.checkpoint)
    if not arguments.no_verify:
        check_memory(checkpoint.parameters)
    recipe = read_recipe(arguments.recipe) if arguments.recipe else None
    precision = arguments.precision or (recipe.precision if recipe else "fp32")
    plan = ExportPlan(arguments.target, precision, arguments.max_context, recipe)
    with ExportProgress() as progress:
        # A quantized bundle is not held to float32's parity, and this machine need not be the one that runs the bundle;
        # `reflectrt verify` there says how far it is from PyTorch.
        exact = not arguments.no_verify and precision in FLOATS and arguments.target == "cpu"
        check = (lambda folder: verify(folder, checkpoint.path)) if exact else None
        manifest = export_bundle(checkpoint, arguments.bundle, plan, progress, check, arguments.force)
    size = sum(entry.size for entry in manifest.files.values())
    print(f"{arguments.bundle}: {size / 1e6:.1f} MB, {manifest.target} {manifest.precision}", file=sys.stderr)
    hint = "" if exact or precision in FLOATS else "; `reflectrt verify` says what quantization has cost"
    print(verification_line(manifest.verification) + hint, file=sys.stderr)
    return 0
