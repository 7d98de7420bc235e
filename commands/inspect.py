"""`reflectrt inspect`: what a bundle holds."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from typing import Any

from ..runtime.bundle import open_bundle
from .arguments import add_bundle, add_json, command
from .describe import INDENT, describe

WIDTH = 100


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
        print("\n".join(line for fact in describe(manifest, bundle.sha256) for line in _wrapped(fact)))
    return 0


def _wrapped(fact: str) -> list[str]:
    return textwrap.wrap(fact, WIDTH, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False)
