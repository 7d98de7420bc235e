"""Measure a bundle on the GPU: each stage alone, whole answers, and how they grow with the video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...runtime.engine import Array
from ...runtime.generate import reflect
from ...runtime.positions import Grid
from ...runtime.session import Model
from ...runtime.stream import Stream
from ...runtime.vision import encode
from ..reference_inputs import Medium
from ..synthetic import SyntheticMedia, random_medium

GRID: Grid = (256, 12, 24)
"""512 frames as the published evaluation samples them: 73,728 patches, 18,432 visual tokens."""
QUESTION, OPTIONS, STEPS = "What happens after the man puts down the cup?", ("He opens", "Yes", "No", "Rain"), 4


def timed(work: Callable[[], object], runs: int, warm_up: int = 1) -> float:
    """Median seconds of work that waits for its results, so that a host clock is enough."""
    times = []
    for index in range(warm_up + runs):
        start = perf_counter()
        work()
        if index >= warm_up:
            times.append(perf_counter() - start)
    return median(times)


@dataclass(frozen=True)
class Stages:
    """Seconds of each stage on its own; `visual` is what prefill read."""

    vision_s: float
    prefill_s: float
    step_s: float
    head_s: float
    allocations: int
    """Times that the engine asked for device memory in timed steps and heads: none after warm-up."""


def measure_stages(model: Model, grid: Grid = GRID, runs: int = 3) -> Stages:
    """Vision in the session's chunks, prefill of its tokens, a step of STEPS reflections behind them, the head."""
    medium = random_medium("video", grid, seed=1)
    engine, facts = model.engine, model.manifest.model
    per_run = max(1, engine.vision_patches // (grid[1] * grid[2]))
    chunks = [medium.patches[first : first + per_run] for first in range(0, grid[0], per_run)]

    def vision() -> list[Any]:
        found = [encode(engine, facts, chunk, (len(chunk), *grid[1:])) for chunk in chunks]
        engine.wait()
        return found

    encoded = vision()
    tokens = grid[0] * grid[1] * grid[2] // facts.merge**2
    stream = Stream(engine, model.manifest, tokens + 512)
    start = stream.mark()

    def prefill() -> None:
        stream.roll_back(start)
        first = 0
        for embeddings in encoded:
            stream.feed_visual(embeddings, (embeddings.shape[0], *grid[1:]), facts.tokens_per_second, first)
            first += embeddings.shape[0]
        stream.end_visual(grid, facts.tokens_per_second)
        engine.wait()

    vision_s, prefill_s = timed(vision, runs), timed(prefill, runs)
    hidden = stream.feed_tokens([1])
    behind = stream.mark()

    def steps() -> None:
        stream.roll_back(behind)
        for _ in reflect(stream, hidden, STEPS):
            pass
        engine.wait()

    timed(steps, 3)
    stream.logits(hidden)
    before = getattr(engine, "allocations", 0)
    step_s = timed(steps, 15) / STEPS
    head_s = timed(lambda: stream.logits(hidden), 10)
    return Stages(vision_s, prefill_s, step_s, head_s, getattr(engine, "allocations", 0) - before)


@dataclass(frozen=True)
class Answers:
    """Seconds of whole answers: cold (frames in memory), and a further question; stages of both; what came out."""

    cold_s: float
    follow_up_s: float
    cold_stages: dict[str, float]
    follow_up_stages: dict[str, float]
    option: str
    scores: dict[str, float]
    reflection: Array


def measure_answers(model: Model, medium: Medium, runs: int = 3) -> Answers:
    """Open a video and answer one multiple-choice question, then another."""
    cold, further = [], []
    for index in range(runs + 1):
        start = perf_counter()
        session = model.open(SyntheticMedia(medium))
        first = session.ask(QUESTION, OPTIONS, steps=STEPS)
        middle = perf_counter()
        second = session.ask("Which colour is the car?", OPTIONS, steps=STEPS)
        end = perf_counter()
        if index:
            cold.append((middle - start, first))
            further.append((end - middle, second))
        del session
    cold_s, answer = sorted(cold, key=lambda pair: pair[0])[len(cold) // 2]
    further_s, follow_up = sorted(further, key=lambda pair: pair[0])[len(further) // 2]
    return Answers(
        cold_s,
        further_s,
        dict(answer.timings),
        dict(follow_up.timings),
        str(answer.option),
        dict(answer.option_scores or {}),
        answer.reflection,
    )


def measure_growth(model: Model, frames: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> dict[str, dict[str, float]]:
    """Stages of a cold answer by number of frames."""
    found = {}
    for count in frames:
        answers = measure_answers(model, random_medium("video", (count // 2, *GRID[1:]), seed=2), runs=1)
        found[str(count)] = {
            "cold_s": answers.cold_s,
            "follow_up_s": answers.follow_up_s,
            **{f"{name}_s": value for name, value in answers.cold_stages.items()},
        }
    return found


def finite(array: Array) -> bool:
    """Whether nothing overflowed: random weights must not hide that."""
    return bool(np.isfinite(array).all())
