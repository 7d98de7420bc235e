"""From the spans of a round to the seconds of each stage, and from many rounds to percentiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...runtime.contract import DECODER, HEAD
from .recorder import GraphRun, Span
from .scenario import Phase, Round

READ, RESIZE, VISION, PREFILL = "read and decode", "resize and patch", "vision", "prefill"
QUESTION = "question prefill"
REFLECT, ANSWER, HEAD_STAGE, TOKEN = "reflection step", "forced answer", "head", "answer token"
OPEN_BUNDLE = "open bundle"
COLD, FOLLOW_UP = "cold question", "follow-up question"
FIRST_TOKEN, FIRST_TOKEN_AGAIN = "first token, cold", "first token, follow-up"
STEADY, FEWEST = 0.1, 8
"""Halves of a run that differ by more are worth a note; fewer measurements have no halves to compare."""
ORDER = (OPEN_BUNDLE, READ, RESIZE, VISION, PREFILL, QUESTION, REFLECT, ANSWER, HEAD_STAGE, TOKEN)


@dataclass(frozen=True)
class Timing:
    """Percentiles of a stage in seconds, over `samples` measurements."""

    samples: int
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True)
class Sample:
    """One measurement of a stage, with the graphs that ran in it."""

    seconds: float
    graphs: tuple[GraphRun, ...] = ()


def timing(seconds: Sequence[float]) -> Timing:
    """Percentiles, linear between measurements."""
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Timing(len(seconds), p50, p90, p99)


def samples(rounds: Iterable[Round]) -> dict[str, list[Sample]]:
    """Every measurement of every stage, stages in the order they happen."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for turn in rounds:
        for name, sample in _of_round(turn):
            found[name].append(sample)
    order = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (order[item[0].split(" #")[0]], item[0])))


def _of_round(turn: Round) -> Iterable[tuple[str, Sample]]:
    read_s = total(turn.opening.stages, "read")
    if turn.decode_s is not None:
        yield READ, Sample(turn.probe_s + turn.decode_s)
    yield RESIZE, Sample(max(0.0, read_s - (turn.decode_s or 0.0)))
    yield VISION, _stage((turn.opening,), "vision")
    yield PREFILL, _stage((turn.opening, turn.cold), "prefill")
    # Of follow-ups alone: after a prefill the caches are cold, and a median over both kinds would be neither.
    for phase in turn.follow_ups:
        yield QUESTION, _stage((phase,), "prefill")
        yield from _of_question(phase)
    yield from ((TOKEN, sample) for sample in tokens(turn.free))


def _of_question(phase: Phase) -> Iterable[tuple[str, Sample]]:
    for number, step in enumerate(steps(phase), start=1):
        yield f"{REFLECT} #{number}", step
    decode, head = _stage((phase,), "decode"), [run for run in phase.graphs if run.name == HEAD]
    head_s = sum(run.seconds for run in head)
    yield ANSWER, Sample(decode.seconds - head_s, tuple(run for run in decode.graphs if run.name != HEAD))
    yield HEAD_STAGE, Sample(head_s, tuple(head))


def unsteady(found: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """Stages that were slower in one half of the run than in the other, and by which share, in medians."""
    apart = {}
    for name, measured in found.items():
        seconds = [sample.seconds for sample in measured]
        half = len(seconds) // 2
        first_s, second_s = (float(np.median(part)) if part else 0.0 for part in (seconds[:half], seconds[half:]))
        if len(seconds) >= FEWEST and min(first_s, second_s) > 0:
            apart[name] = max(first_s, second_s) / min(first_s, second_s) - 1
    return {name: share for name, share in apart.items() if share > STEADY}


def total(stages: Iterable[Span], name: str) -> float:
    """Seconds of all spans of a stage."""
    return sum(span.seconds for span in stages if span.name == name)


def _stage(phases: Sequence[Phase], name: str) -> Sample:
    """A stage over phases, with the graphs that ran inside its spans."""
    spans = [span for phase in phases for span in phase.stages if span.name == name]
    graphs = [run for phase in phases for run in phase.graphs if any(_inside(run, span) for span in spans)]
    return Sample(sum(span.seconds for span in spans), tuple(graphs))


def _inside(run: GraphRun, span: Span) -> bool:
    return run.thread == span.thread and span.start_s <= run.start_s and run.end_s <= span.end_s


def steps(phase: Phase) -> list[Sample]:
    """Each reflection step: from the end of the decoder run before it to the end of its own."""
    found = []
    for span in phase.stages:
        if span.name == "reflect":
            begin = span.start_s
            inside = [run for run in phase.graphs if _inside(run, span)]
            for run in (run for run in inside if run.name == DECODER):
                graphs = tuple(each for each in inside if begin <= each.start_s and each.end_s <= run.end_s)
                found.append(Sample(run.end_s - begin, graphs))
                begin = run.end_s
    return found


def tokens(phase: Phase) -> list[Sample]:
    """Each answer token but the first: from one run of the head to the next, unless a reflection window is between."""
    heads = [run for run in phase.graphs if run.name == HEAD]
    windows = [span for span in phase.stages if span.name == "reflect"]
    found = []
    for before, after in pairwise(heads):
        if not any(before.end_s <= span.start_s < after.end_s for span in windows):
            graphs = tuple(run for run in phase.graphs if before.end_s <= run.start_s and run.end_s <= after.end_s)
            found.append(Sample(after.end_s - before.end_s, graphs))
    return found


def first_token_s(phase: Phase) -> float:
    """Seconds from the question to its first chosen token."""
    return next(run.end_s for run in phase.graphs if run.name == HEAD) - phase.start_s


@dataclass(frozen=True)
class Wait:
    """What a user waits for: wall time, and the sum of its stages in seconds (median; more where they overlap)."""

    name: str
    wall: Timing
    sum_s: float


def waits(rounds: Sequence[Round]) -> list[Wait]:
    """Cold and follow-up question, and the time to the first token of a free text for both."""
    open_s, probe_s = [turn.opening.wall_s for turn in rounds], [turn.probe_s for turn in rounds]
    read_s = [_sum(turn.opening) for turn in rounds]
    again = [phase for turn in rounds for phase in turn.follow_ups]
    cold_s, again_s = [_sum(turn.cold) for turn in rounds], [_sum(phase) for phase in again]
    token_s = [first_token_s(turn.free) for turn in rounds]
    return [
        _wait(COLD, _plus(open_s, [turn.cold.wall_s for turn in rounds]), _plus(probe_s, read_s, cold_s)),
        _wait(FOLLOW_UP, [phase.wall_s for phase in again], again_s),
        _wait(FIRST_TOKEN, _plus(open_s, token_s), _plus(probe_s, read_s, token_s)),
        _wait(FIRST_TOKEN_AGAIN, token_s, token_s),
    ]


def _sum(phase: Phase) -> float:
    return sum(span.seconds for span in phase.stages)


def _plus(*parts: Sequence[float]) -> list[float]:
    return [sum(values) for values in zip(*parts, strict=True)]


def _wait(name: str, wall_s: Sequence[float], sum_s: Sequence[float]) -> Wait:
    return Wait(name, timing(wall_s), float(np.median(sum_s)))
