"""`reflectrt verify`: a bundle against its checkpoint in PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from ..runtime.errors import UsageError
from .arguments import add_bundle, add_json, command
from .describe import verification_line


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "verify",
        run,
        "hold a bundle against its checkpoint in PyTorch",
        "reflectrt verify bundle --against checkpoint",
    )
    add_bundle(parser)
    parser.add_argument("--against", metavar="CHECKPOINT", required=True, help="the checkpoint it was exported from")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the figures; status 1 where they do not agree."""
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
