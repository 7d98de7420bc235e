"""`make demo`: ask the reference checkpoint ten questions about short films that it has not seen, and mark its answers.

The films are made here, with real clips behind coloured shapes (`bench/needle`), written as mp4 and read back like
any other. The questions are of the kinds that the checkpoint is good at; its README says what it cannot do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from .bench import needle
from .bench.needle.write import write_media
from .cli import run_guarded
from .runtime import Answer, load
from .runtime.errors import UsageError

BUNDLE = Path(__file__).parent / "assets" / "demo"
SEED = 20  # of films over clips that training kept away from
KINDS = ("flash shape", "flash colour")
QUESTIONS, FRAMES = 10, 32
MANY = 1000  # films to draw from; those that are too long or of another kind are never made


def main() -> int:
    """Ask, show each answer with its time, count the right ones."""
    if not BUNDLE.is_dir():
        raise UsageError(
            "the demo's checkpoint is in the repository, not in the installed package; run `make demo` there"
        )
    start = perf_counter()
    model = load(BUNDLE)
    manifest = model.manifest
    opened_s = perf_counter() - start
    print(f"{manifest.source.name}, {manifest.precision}, on {model.engine.device}: opened in {opened_s:.2f} s\n")
    right = 0
    with TemporaryDirectory() as folder:
        for item in islice(films(), QUESTIONS):
            session = model.open(write_media(item, Path(folder)))
            question = item.question
            answer = session.ask(question.text, question.options)
            right += answer.option == question.label
            print(
                f"{item.count} frames of {item.size[0]}x{item.size[1]}, {session.media[0].visual_tokens} visual tokens"
            )
            show(answer, question.options, question.label)
    print(f"{right} of {QUESTIONS} right, {perf_counter() - start:.0f} s in all, the making of the films included")
    return 0


def films() -> Iterator[needle.VideoItem]:
    """Short films of the chosen kinds."""
    return (item for item in needle.videos(SEED, MANY) if item.count <= FRAMES and item.question.category in KINDS)


def show(answer: Answer, options: tuple[str, ...], label: str) -> None:
    """One answer with what it took."""
    seconds = answer.timings
    listed = "  ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    mark = "right" if answer.option == label else f"wrong, it is {label}"
    print(f"  {answer.question}  {listed}")
    steps = len(answer.reflection)
    print(f"  {answer.option}. {answer.text} ({mark}): {steps} reflection steps, {seconds['total']:.2f} s")
    stages = "  ".join(f"{name} {seconds[name]:.3f}" for name in ("read", "vision", "prefill", "reflect", "decode"))
    print(f"  seconds: {stages}\n")


if __name__ == "__main__":
    sys.exit(run_guarded(main))
