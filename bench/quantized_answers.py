"""What quantization does to answers: quantized bundles beside the float one on many needle questions.

    python -m reflectrt.bench.quantized_answers OUT float=BUNDLE int8=BUNDLE fp8=BUNDLE [--media 110] [--questions 20]

The first bundle is what the others are held against. Half of the media are images of about a megapixel, half videos of
at most 48 frames; each is opened once a bundle and asked all its questions, since opening is what takes time. Questions
about one medium are not independent, so intervals are of a bootstrap over media. OUT has a line a medium (a run goes on
where it was cut short; `--part 1/8` to `--part 8/8` share it) and, at the end, a summary.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import Bar
from ..runtime import load
from ..runtime.session import Model
from .needle.items import Item, groups
from .needle.write import write_media
from .profile.environment import describe
from .reflection import SUMMARY, Part, drop_cut_line, read

RESAMPLES, SEED = 10_000, 0  # of the bootstrap
MARGINS = (0.0, 0.02, 0.1, 0.5)
"""Edges of the classes by margin: the probability of the float bundle's best option less that of its second best.
Below the first edge are near ties, which any rounding may turn."""


def answers(model: Model, items: Sequence[Item], media: Path) -> list[dict[str, Any]]:
    """For each question the letter, the options' probabilities and the state after each reflection step."""
    session, found = model.open(media), []
    for item in items:
        answer = session.ask(item.question.text, item.question.options)
        scores = list((answer.option_scores or {}).values())
        found.append({"option": answer.option, "scores": scores, "states": answer.reflection.astype(np.float32)})
    return found


def line(items: Sequence[Item], by_bundle: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One medium's answers, states as cosines with the first bundle's."""
    base = next(iter(by_bundle.values()))
    cells = {
        name: [
            {"option": one["option"], "scores": one["scores"], "cosine": _cosines(one["states"], other["states"])}
            for one, other in zip(found, base, strict=True)
        ]
        for name, found in by_bundle.items()
    }
    return {"id": items[0].id, "labels": [item.question.label for item in items], "cells": cells}


def _cosines(ours: Any, theirs: Any) -> list[float]:
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return [float(value) for value in (ours * theirs).sum(-1) / lengths]


def run(bundles: dict[str, Path], media: int, questions: int, seed: int, out: Path, part: Part) -> None:
    """Ask what is not answered yet, medium by medium."""
    out.mkdir(parents=True, exist_ok=True)
    drop_cut_line(out / part.lines)
    done = {each["id"] for each in read(out)}
    models = {name: load(bundle, device="cpu") for name, bundle in bundles.items()}
    bar = Bar("media", sys.stderr)
    with (out / part.lines).open("a", encoding="utf-8") as lines, tempfile.TemporaryDirectory() as scratch:
        for place, items in enumerate(groups(seed, media, questions)):
            if items[0].id in done or not part.has(place):
                continue
            file = write_media(items[0], Path(scratch))
            found = line(items, {name: answers(model, items, file) for name, model in models.items()})
            file.unlink()
            lines.write(json.dumps(found) + "\n")
            lines.flush()
            bar.update(place + 1, media)
    bar.clear()


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of every bundle but the first: agreement, accuracy, KL of the options and cosine after each reflection step."""
    names = list(lines[0]["cells"])
    return {name: _cell(lines, name, names[0]) for name in names[1:]}


def _cell(lines: Sequence[dict[str, Any]], name: str, base: str) -> dict[str, Any]:
    ours, theirs = ([each["cells"][key] for each in lines] for key in (name, base))
    same = [[a["option"] == b["option"] for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)]
    right, float_right = (
        [
            [a["option"] == label for a, label in zip(cell, each["labels"], strict=True)]
            for cell, each in zip(side, lines, strict=True)
        ]
        for side in (ours, theirs)
    )
    change = [list(np.subtract(x, y, dtype=float)) for x, y in zip(right, float_right, strict=True)]
    flat = [pair for x, y in zip(ours, theirs, strict=True) for pair in zip(x, y, strict=True)]
    agree = np.concatenate(same)
    return {
        "questions": len(agree),
        "media": len(lines),
        "agreement": float(agree.mean()),
        "agreement_interval_95": _interval(same),
        "agreement_by_margin": _by_margin(agree, np.array([_margin(b["scores"]) for _, b in flat])),
        "accuracy": float(np.concatenate(right).mean()),
        "float_accuracy": float(np.concatenate(float_right).mean()),
        "accuracy_change": float(np.concatenate(change).mean()),
        "accuracy_change_interval_95": _interval(change),
        "kl_of_options": float(np.mean([_divergence(b["scores"], a["scores"]) for a, b in flat])),
        "mean_cosine_by_step": np.mean([a["cosine"] for a, _ in flat], axis=0).round(6).tolist(),
        "least_cosine_by_step": np.min([a["cosine"] for a, _ in flat], axis=0).round(6).tolist(),
    }


def _by_margin(agree: Any, margins: Any) -> list[dict[str, Any]]:
    """Agreement of the questions of each class of margins."""
    found = []
    for low, high in zip(MARGINS, (*MARGINS[1:], np.inf), strict=True):
        inside = (margins >= low) & (margins < high)
        share = float(agree[inside].mean()) if inside.any() else None
        found.append({"margin_from": low, "questions": int(inside.sum()), "agreement": share})
    return found


def _margin(scores: Sequence[float]) -> float:
    second, first = sorted(scores)[-2:]
    return first - second


def _divergence(wanted: Sequence[float], found: Sequence[float]) -> float:
    p, q = (np.clip(values, 1e-12, 1) for values in (wanted, found))
    return float((p * np.log(p / q)).sum())


def _interval(groups_of: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean over all questions by resampling media."""
    sums = np.array([np.sum(group) for group in groups_of], dtype=float)
    counts = np.array([len(group) for group in groups_of])
    picks = np.random.default_rng(SEED).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Ask, summarise, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("bundles", nargs="+", help="name=folder, the float one first")
    parser.add_argument("--media", type=int, default=110)
    parser.add_argument("--questions", type=int, default=20, help="a medium at most")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--part", type=Part.parse, default=Part(), help="2/8: the second of eight processes")
    options = parser.parse_args()
    bundles = {name: Path(folder) for name, _, folder in (each.partition("=") for each in options.bundles)}
    run(bundles, options.media, options.questions, options.seed, options.out, options.part)
    if options.part.of > 1:
        return
    threads = len(os.sched_getaffinity(0))
    environment = describe("cpu", threads, os.getloadavg()[0], with_torch=False)
    cells = summarise(list(read(options.out)))
    text = json.dumps({"environment": asdict(environment), "bundles": cells}, indent=1)
    (options.out / SUMMARY).write_text(text + "\n", encoding="utf-8")
    for name, cell in cells.items():
        low, high = cell["agreement_interval_95"]
        print(
            f"{name:14} {cell['questions']} questions: same answer {cell['agreement']:.2%} ({low:.2%} to {high:.2%}), "
            f"right {cell['accuracy']:.2%} (float {cell['float_accuracy']:.2%})"
        )


if __name__ == "__main__":
    main()
