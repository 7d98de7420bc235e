"""What reflection buys: bundles and numbers of steps side by side on the same held-out needle questions.

    python -m reflectrt.bench.reflection OUT --seed 7 --limit 1000 reference=BUNDLE:0,1,2,4,8,16 plain=BUNDLE:0

A medium is opened once a bundle and asked once for every number of steps, so that all of them share its prefix. OUT has
a line a question (a run goes on where it was cut short) and, at the end, a summary: accuracy with 95 % intervals and
decoder runs, and the difference to the last entry with the interval of a paired bootstrap.
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
from typing import Any

import numpy as np

from ..calibration.statistics import wilson
from ..progress import Bar
from ..runtime import load
from ..runtime.session import Model
from .evaluate import GENERATORS
from .needle.write import write_media

LINES, SUMMARY = "answers.jsonl", "summary.json"
RESAMPLES = 10_000
SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Entry:
    """A bundle and the numbers of reflection steps to ask it with."""

    name: str
    bundle: Path
    steps: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Entry:
        """`name=bundle:0,1,4`."""
        name, _, rest = text.partition("=")
        bundle, _, steps = rest.rpartition(":")
        return cls(name, Path(bundle), tuple(int(step) for step in steps.split(",")))

    def cells(self) -> list[str]:
        """One name for every number of steps."""
        return [f"{self.name} K={steps}" for steps in self.steps]


def answers(model: Model, entry: Entry, item: Any, media: Path) -> dict[str, dict[str, Any]]:
    """Each cell's chosen letter and decoder runs."""
    opened = model.open(str(media))
    found = {}
    for steps, cell in zip(entry.steps, entry.cells(), strict=True):
        answer = opened.ask(item.question.text, item.question.options, steps=steps)
        found[cell] = {"option": answer.option, "forwards": answer.forwards}
    return found


def run(task: str, seed: int, limit: int, entries: list[Entry], out: Path) -> None:
    """Ask what is not answered yet, line by line."""
    out.mkdir(parents=True, exist_ok=True)
    done = {line["id"] for line in read(out)}
    models = {entry.name: load(entry.bundle) for entry in entries}
    bar = Bar(task, sys.stderr)
    with (out / LINES).open("a", encoding="utf-8") as lines, tempfile.TemporaryDirectory() as scratch:
        for number, item in enumerate(GENERATORS[task](seed, limit), 1):
            if item.id in done:
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
            bar.update(number, limit)
    bar.clear()


def read(out: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of an earlier run."""
    file = out / LINES
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        file.write_text(whole, encoding="utf-8")  # a line cut short by a kill is asked again
        yield from map(json.loads, whole.splitlines())


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
    options = parser.parse_args()
    run(options.task, options.seed, options.limit, options.entries, options.out)
    summary = summarise(list(read(options.out)))
    (options.out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, cell in summary.items():
        low, high = cell["interval_95"]
        print(f"{name:18} {cell['accuracy']:6.1%} ({low:.1%} to {high:.1%})  {cell['difference']:+.1%}")


if __name__ == "__main__":
    main()
