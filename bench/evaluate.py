"""Run a benchmark through a bundle: questions in, predictions and accuracy out, resumable after a kill.

Every question goes through real files and the whole runtime. A medium that cannot be read counts as wrong and is named.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibration.samples import SAMPLES, Sample, parse_sample
from ..calibration.statistics import wilson
from ..runtime.errors import LimitError, MediaError, UsageError
from ..runtime.session import Model
from . import needle
from .needle.write import sample_line, write_media

PREDICTIONS, METRICS, RUN = "predictions.jsonl", "metrics.json", "run.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """What makes two runs the same, so that one may go on with the other's predictions."""

    benchmark: str
    bundle: str
    """The bundle's sha256."""
    data: str
    """`seed 7`, or the folder that the questions come from."""
    limit: int
    steps: int | None
    """None takes the checkpoint's own."""


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl; `seconds` from opening the media to the answer."""

    id: str
    prediction: str
    label: str
    category: str
    option_scores: dict[str, float]
    seconds: float
    forwards: int
    error: str = ""


Item = needle.ImageItem | needle.VideoItem
GENERATORS: dict[str, Callable[[int, int], Iterator[Item]]] = {
    "needle-image": needle.images,
    "needle-video": needle.videos,
}


def generated(task: str, seed: int, limit: int, folder: Path, keep: bool, done: Container[str]) -> Iterator[Sample]:
    """Needle questions of a seed that are not `done`.

    Their media lie under `folder`/media, and a samples.jsonl beside it, for good only where `keep`.
    """
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    items: Iterator[Item] = GENERATORS[task](seed, limit)
    for item in items:
        if item.id in done:
            continue
        file = write_media(item, media)
        line = sample_line(item, file.relative_to(folder))
        if keep:
            with (folder / SAMPLES).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        yield parse_sample(line, folder)
        if not keep:
            file.unlink()


def evaluate(
    model: Model, samples: Iterable[Sample], run: Run, done: list[Prediction], out: Path, progress: Progress
) -> dict[str, Any]:
    """Ask the questions, add to the predictions that are `done`, write metrics.json and return it."""
    predictions = list(done)
    with (out / PREDICTIONS).open("a", encoding="utf-8") as lines:
        for sample in samples:
            predictions.append(predict(model, sample, run.steps))
            lines.write(json.dumps(asdict(predictions[-1])) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            progress(len(predictions), run.limit)
    metrics = summarise(predictions, run)
    (out / METRICS).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return metrics


def resume(out: Path, run: Run) -> list[Prediction]:
    """Predictions that an earlier, equal run left in `out`. Raises UsageError where another run left its own."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be a folder ({error.strerror}); choose another --out") from None
    record, text = out / RUN, json.dumps(asdict(run), indent=1) + "\n"
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise UsageError(f"{out} holds another run's predictions (see {RUN}); choose another --out")
    record.write_text(text, encoding="utf-8")
    file = out / PREDICTIONS
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    whole = lines[:-1]  # a line that was cut short by a kill has no end
    file.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return [_prediction(file, number, line) for number, line in enumerate(whole, 1)]


def _prediction(file: Path, number: int, line: str) -> Prediction:
    try:
        return Prediction(**json.loads(line))
    except (ValueError, TypeError):
        raise UsageError(f"{file}, line {number} is not a prediction; remove it, or choose another --out") from None


def predict(model: Model, sample: Sample, steps: int | None) -> Prediction:
    """Ask one question of freshly opened media; media that cannot be read, or are too large, are a wrong answer."""
    try:
        session = model.open(*sample.media)
    except (LimitError, MediaError) as error:
        return Prediction(sample.id, "", sample.label, sample.category, {}, 0.0, 0, str(error))
    answer = session.ask(sample.question, sample.options, steps=steps)
    return Prediction(
        id=sample.id,
        prediction=answer.option or "",
        label=sample.label,
        category=sample.category,
        option_scores=answer.option_scores or {},
        seconds=answer.timings["total"],
        forwards=answer.forwards,
    )


def summarise(predictions: list[Prediction], run: Run) -> dict[str, Any]:
    """Accuracy over all and by category, with 95 % intervals; median seconds; what could not be read."""
    categories = sorted({prediction.category for prediction in predictions})
    by_category = {name: _accuracy([p for p in predictions if p.category == name]) for name in categories}
    answered = [prediction for prediction in predictions if not prediction.error]
    return {
        "benchmark": run.benchmark,
        "steps": run.steps,
        **_accuracy(predictions),
        "by_category": by_category,
        "median_seconds": statistics.median(p.seconds for p in answered) if answered else None,
        "forwards": statistics.median(p.forwards for p in answered) if answered else None,
        "unread": [f"{prediction.id}: {prediction.error}" for prediction in predictions if prediction.error],
        "run": asdict(run),
    }


def _accuracy(predictions: list[Prediction]) -> dict[str, Any]:
    total = len(predictions)
    correct = sum(prediction.prediction == prediction.label for prediction in predictions)
    low, high = wilson(correct, total)
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total if total else 0.0,
        "interval_95": [low, high],
    }
