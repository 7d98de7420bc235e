"""What the commands' parsers share: one-line errors, checked numbers, common options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

DIGITS = 18
"""Of a whole number: what fits 64 bits whatever it is added to."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others, and whose options are written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand with its help and an example; `run` gets the parsed options and returns the exit status."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle to work with."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder written by `reflectrt export`")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the bundle runs."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where it runs (default: what the bundle was exported for)",
    )


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too small, pass 1 or more")
    return value


def count(text: str) -> int:
    """A whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    if len(text) > DIGITS:
        raise argparse.ArgumentTypeError(f"a number of {len(text)} digits is too large, pass {DIGITS} at most")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = seconds(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def rate(text: str) -> float:
    """A number above 0."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 frames a second show nothing, pass more")
    return value


def seconds(text: str) -> float:
    """A number of 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value
