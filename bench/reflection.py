"""What reflection buys: bundles and numbers of steps side by side on the same held-out needle questions.

    python -m reflectrt.bench.reflection OUT --seed 7 --limit 1000 \\
        reference=BUNDLE:0,1,2,4,8,16 zooming=BUNDLE:zoom plain=BUNDLE:0

A medium is opened once a bundle and asked once for every number of steps, so that all share its prefix; the time
of a question is that of the opening and its own. OUT has a line a question (a run goes on where it was cut short) and,
at the end, a summary: accuracy with 95 % intervals, decoder runs and seconds, and the difference to the last entry with
the interval of a paired bootstrap. On a larger machine several processes share the questions: `--part 1/8` to `--part
8/8`, and at the end once without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..calibration.statistics import wilson
from ..progress import Bar
from ..runtime import Device, load
from ..runtime.session import Model
from . import zooming
from .evaluate import GENERATORS
from .needle.write import write_media

SUMMARY = "summary.json"
ZOOM = "zoom"
RESAMPLES = 10_000
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Entry:
    """A bundle and the numbers of reflection steps to ask it with; none: it zooms."""

    name: str
    bundle: Path
    steps: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Entry:
        """`name=bundle:0,1,4` or `name=bundle:zoom`."""
        name, _, rest = text.partition("=")
        bundle, _, steps = rest.rpartition(":")
        return cls(name, Path(bundle), () if steps == ZOOM else tuple(int(step) for step in steps.split(",")))

    def cells(self) -> list[str]:
        """One name for every number of steps."""
        return [f"{self.name} K={steps}" for steps in self.steps] or [self.name]


@dataclass(frozen=True)
class Part:
    """Which of the questions a process asks: every `of`-th, from the `number`-th (1 ...) on."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/8`."""
        number, _, of = text.partition("/")
        return cls(int(number), int(of))

    def has(self, place: int) -> bool:
        """Whether the question at `place` (0 ...) is this process's."""
        return place % self.of == self.number - 1

    @property
    def lines(self) -> str:
        """The file of this part's answers."""
        return f"answers-{self.number}-of-{self.of}.jsonl"


def answers(model: Model, entry: Entry, item: Any, media: Path) -> dict[str, dict[str, Any]]:
    """Each cell's chosen letter, decoder runs and seconds from the file to the letter."""
    start = perf_counter()
    if not entry.steps:
        zoomed = zooming.answer(model, media, item.question.text, item.question.options)
        seconds = perf_counter() - start
        found = {"option": zoomed.option, "forwards": zoomed.forwards, "seconds": seconds, "reply": zoomed.reply}
        return {entry.name: found}
    opened = model.open(str(media))
    opening, cells = perf_counter() - start, {}
    for steps, cell in zip(entry.steps, entry.cells(), strict=True):
        start = perf_counter()
        answer = opened.ask(item.question.text, item.question.options, steps=steps)
        seconds = opening + perf_counter() - start
        cells[cell] = {"option": answer.option, "forwards": answer.forwards, "seconds": seconds}
    return cells


def run(
    task: str, seed: int, limit: int, entries: list[Entry], out: Path, part: Part, device: Device
) -> None:  # fmt: skip
    """Ask what is not answered yet, line by line."""
    out.mkdir(parents=True, exist_ok=True)
    drop_cut_line(out / part.lines)
    done = {line["id"] for line in read(out)}
    models = {entry.name: load(entry.bundle, device=device) for entry in entries}
    bar = Bar(task, sys.stderr)
    with (out / part.lines).open("a", encoding="utf-8") as lines, tempfile.TemporaryDirectory() as scratch:
        for place, item in enumerate(GENERATORS[task](seed, limit)):
            if item.id in done or not part.has(place):
                continue
            media = write_media(item, Path(scratch))
            cells: dict[str, Any] = {}
            for entry in entries:
                cells |= answers(models[entry.name], entry, item, media)
            media.unlink()
            question = item.question
            line = {"id": item.id, "label": question.label, "category": question.category, "cells": cells}
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            bar.update(place + 1, limit)
    bar.clear()


def drop_cut_line(file: Path) -> None:
    """What a kill left of a question is asked again."""
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def read(out: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of an earlier run and of all parts."""
    for file in sorted(out.glob("answers*.jsonl")):
        text = file.read_text(encoding="utf-8")
        yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of every cell over all questions and by category; the last cell is what the others are held against."""
    names = list(lines[0]["cells"])
    hits = {name: np.array([line["cells"][name]["option"] == line["label"] for line in lines]) for name in names}
    categories = np.array([line["category"] for line in lines])
    return {name: _cell(name, lines, hits, categories, names[-1]) for name in names}


def _cell(
    name: str, lines: list[dict[str, Any]], hits: dict[str, Any], categories: Any, base: str
) -> dict[str, Any]:  # fmt: skip
    right = hits[name]
    return {
        "questions": len(lines),
        "accuracy": float(right.mean()),
        "interval_95": wilson(int(right.sum()), len(right)),
        "difference": float((right.astype(float) - hits[base]).mean()),
        "difference_interval_95": _bootstrap(right.astype(float) - hits[base]),
        "forwards": statistics.median(line["cells"][name]["forwards"] for line in lines),
        "median_s": statistics.median(line["cells"][name]["seconds"] for line in lines),
        "by_category": {kind: float(right[categories == kind].mean()) for kind in sorted(set(categories))},
    }


def _bootstrap(differences: Any) -> tuple[float, float]:
    """95 % interval of a mean by resampling questions."""
    random = np.random.default_rng(SEED)
    means = [random.choice(differences, len(differences)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Run, summarise, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("entries", type=Entry.parse, nargs="+")
    parser.add_argument("--task", choices=tuple(GENERATORS), default="needle-image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--part", type=Part.parse, default=Part(), help="2/8: the second of eight processes")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    run(options.task, options.seed, options.limit, options.entries, options.out, options.part, options.device)
    if options.part.of > 1:
        return
    summary = summarise(list(read(options.out)))
    (options.out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, cell in summary.items():
        low, high = cell["interval_95"]
        print(
            f"{name:18} {cell['accuracy']:6.1%} ({low:.1%} to {high:.1%})  {cell['difference']:+.1%}  "
            f"{cell['forwards']:.0f} runs  {cell['median_s']:.3f} s"
        )


if __name__ == "__main__":
    main()
