"""`reflectrt inspect`: what a bundle holds."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..runtime.bundle import open_bundle
from .arguments import add_bundle, add_json, command
from .describe import describe


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "inspect", run, "show what a bundle holds", "reflectrt inspect bundle")
    add_bundle(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the bundle and print what it is."""
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    if arguments.json:
        print(json.dumps(asdict(manifest) | {"sha256": bundle.sha256}))
    else:
        print("\n".join(describe(manifest, bundle.sha256)))
    return 0
