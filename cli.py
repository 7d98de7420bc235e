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

INTERRUPTED = 130
"""Exit status of a program that SIGINT (2) ended, as shells give it: 128 + 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    # Importing the commands takes a while, in which a user may change their mind. Nothing is begun, so we leave at
    # once: an exception would come out of some libraries as an error of theirs.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(_interrupted()))
    try:
        parsed = build_parser().parse_args(arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    return run_guarded(lambda: parsed.run(parsed))


def run_guarded(run: Callable[[], int]) -> int:
    """Run a command's body; what goes wrong becomes one line on stderr and an exit status."""
    from .runtime.errors import ReflectRTError

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
    except MemoryError:  # what no limit of ours has foreseen
        print("error: out of memory; close other programs, or use a smaller medium or bundle", file=sys.stderr)
        return 1
    except OSError as error:  # what no room of ours has named: output that cannot be written, mostly
        print(f"error: {error.strerror or error}; check where output goes", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    except ImportError as error:
        # An interrupt while onnxruntime's C++ module starts comes out of it as "initialization failed".
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            return _interrupted()
        raise


def _interrupted() -> int:
    print("error: interrupted", file=sys.stderr, flush=True)
    return INTERRUPTED


def _terminate(number: int, _: object) -> NoReturn:
    """Leave through the stack, so that temporary folders are removed."""
    raise SystemExit(128 + number)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    from .commands import ask, build, calibrate, evaluate, export, inspect, profile, verify
    from .commands.arguments import Parser

    parser = Parser(prog="reflectrt", description="Ask questions about huge images and long videos.")
    parser.add_argument("--version", action="version", version=f"reflectrt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (export, calibrate, build, ask, evaluate, profile, verify, inspect):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
