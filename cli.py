"""The command line: `reflectrt export | calibrate | build | ask | evaluate | profile | verify | inspect`.

Results go to stdout (`--json`: one JSON object and nothing else), progress and warnings to stderr. Exit status 0 is
success, 2 wrong usage, 1 anything else, with one line `error: what, and what to do`.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import __version__
from .commands import ask, build, calibrate, evaluate, export, inspect, profile, verify
from .commands.arguments import Parser
from .runtime.errors import ReflectRTError

COMMANDS = (export, calibrate, build, ask, evaluate, profile, verify, inspect)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run_guarded(lambda: parsed.run(parsed))


def run_guarded(run: Callable[[], int]) -> int:
    """Run a command's body; what goes wrong becomes one line on stderr and an exit status."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters that an answer or a path has
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run()
        sys.stdout.flush()
        return status
    except ReflectRTError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # one line, whatever a path has in it
        return error.exit_code
    except BrokenPipeError:  # the reader of our output is gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what no room of ours has named: output that cannot be written, mostly
        print(f"error: {error.strerror or error}; check where output goes", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _terminate(number: int, _: object) -> NoReturn:
    """Leave through the stack, so that temporary folders are removed."""
    raise SystemExit(128 + number)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = Parser(prog="reflectrt", description="Ask questions about huge images and long videos.")
    parser.add_argument("--version", action="version", version=f"reflectrt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
