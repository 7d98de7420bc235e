"""Profile bundles in one run: openings, warm-up, then one round of each bundle after the other, over and over."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ...runtime import Device, load
from ...runtime.engines import TENSORRT
from ...runtime.engines.onnxruntime_cuda import OrtCudaEngine
from ...runtime.errors import BundleError, ReflectRTError
from ...runtime.session import Model
from . import environment, facts
from .advice import advise
from .memory import measure_memory
from .operators import measure_operators
from .others import Others
from .recorder import seconds_per_span
from .report import FORMAT, VERSION, Ceilings, Memory, Operator, Overhead, Profile, Report, Stage, StageWork, Total
from .rival import MAX_RUNS, Contender, contenders, rival_report
from .scenario import Round, Subject, Workload
from .stages import COLD, OPEN_BUNDLE, Sample, samples, timing, unsteady, waits

if TYPE_CHECKING:
    from ..torch_loop import LoopTimes

OPENINGS, MORE_OPENINGS, OPENINGS_S = 3, 15, 1.0
"""Times a bundle is opened for its timing: at least, and up to while they take no longer than this (seconds).

Opening a large one takes as long as many rounds.
"""
BUSY_LOAD = 0.5
"""Load a core above which a note says that the machine was not quiet."""

DISTURBED = 0.05
"""Share of all cores from which on other programs disturb a turn: a decoder step waits for its slowest thread."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure and how often."""

    work: Workload
    runs: int = 10
    warm_up: int = 2
    device: Device = "auto"
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    unverified: bool = False
    against: str | None = None
    against_dtype: str = "float32"


@dataclass(frozen=True)
class Measured:
    """The report, and what a trace is drawn from: the last round of the first bundle, its operators' events."""

    report: Report
    last: Round
    operators: list[Any]


@dataclass
class Candidate:
    """A bundle being profiled."""

    path: Path
    open_s: list[float]
    subject: Subject
    memory: Memory
    rounds: list[Round] = field(default_factory=list)


def measure(bundles: Sequence[Path], plan: Plan, progress: Progress = lambda _: None) -> Measured:
    """Profile the bundles (the first is the one that others are compared with) and, if asked, PyTorch."""
    load_average = os.getloadavg()[0]
    candidates = [_open(path, plan, progress) for path in bundles]
    rivals = contenders(plan.against, plan.against_dtype, plan.threads) if plan.against else []
    before, notes = _ceilings(candidates[0].subject.plain, plan, progress)
    notes += _alternate(candidates, rivals, plan, progress)
    ceilings = before.best(_ceilings(candidates[0].subject.plain, plan, progress)[0]) if before else None
    finished = [_finish(candidate, plan, ceilings, notes, progress) for candidate in candidates]
    cold_s, option = finished[0][0].total(COLD).p50_s, candidates[0].rounds[-1].answer.option
    described = environment.describe(candidates[0].subject.engine.device, plan.threads, load_average, bool(rivals))
    report = Report(
        format=FORMAT,
        version=VERSION,
        environment=described,
        ceilings=ceilings,
        profiles=tuple(profile for profile, _ in finished),
        rivals=tuple(rival_report(rival, plan.against_dtype, cold_s, option) for rival in rivals),
        notes=tuple(dict.fromkeys([*notes, *_doubts(candidates, load_average)])),
    )
    return Measured(report, candidates[0].rounds[-1], finished[0][1])


def _open(path: Path, plan: Plan, progress: Progress) -> Candidate:
    progress(f"opening {path}")
    open_s: list[float] = []
    model: Model | None = None
    while model is None or len(open_s) < OPENINGS or (len(open_s) < MORE_OPENINGS and sum(open_s) < OPENINGS_S):
        model = None  # only one copy of the weights at a time
        start = perf_counter()
        model = load(path, plan.device, plan.threads)
        open_s.append(perf_counter() - start)
        _check_verified(path, model, plan.unverified)
    progress(f"memory of {path}")
    # Before anything else ran: later the engine's arenas hold on to what they once needed, and no peak is new.
    return Candidate(path, open_s, Subject(model), measure_memory(model, plan.work))


def _check_verified(path: Path, model: Model, unverified: bool) -> None:
    """A wrong bundle may well be a fast one: its times mean nothing."""
    record = model.manifest.verification
    if unverified or (record is not None and record.passed):
        return
    state = "did not agree" if record else "was never compared"
    raise BundleError(f"{path} {state} with PyTorch; export it again without --no-verify, or pass --unverified")


def _ceilings(model: Model, plan: Plan, progress: Progress) -> tuple[Ceilings | None, list[str]]:
    """The device's ceilings, and a note where there are none."""
    target = model.manifest.target
    notes = [] if model.engine.device == "cpu" else ["costliest operators are left out, they are measured on CPUs only"]
    if target in TENSORRT:
        return None, [*notes, f"ceilings are left out, they are not measured through {target}"]
    try:
        from .ceilings import measure_ceilings
        from .ceilings_cuda import measure_cuda_ceilings
    except ModuleNotFoundError as error:
        return None, [f"work and ceilings are left out, they need {error.name}: run `pip install 'reflectrt[export]'`"]
    progress("ceilings")
    if not isinstance(model.engine, OrtCudaEngine):
        return measure_ceilings(plan.threads), notes
    try:
        return measure_cuda_ceilings(model.engine, model.manifest.activation), notes
    except ReflectRTError as error:  # a GPU that the bundle alone fills; its times stand without
        return None, [*notes, f"ceilings are left out: {error}"]


def _alternate(
    candidates: Sequence[Candidate], rivals: Sequence[Contender], plan: Plan, progress: Progress
) -> list[str]:
    """One round of everyone in turn, so that a change of the machine's pace hits all alike; a note on disturbances.

    Turns in which other programs took more than DISTURBED of the cores are done again, up to as many as were asked for.
    """
    for number in range(plan.warm_up):
        progress(f"warm-up {number + 1}")
        _turn(candidates, rivals if number == 0 else [], plan)
    others, kept, again, disturbed = Others(), 0, 0, 0
    while kept < plan.runs:
        progress(f"run {kept + 1} of {plan.runs}" + (f", {again} done again" if again else ""))
        due = [rival for rival in rivals if len(rival.times) < MAX_RUNS]
        others.share()
        rounds, times = _turn(candidates, due, plan)
        busy = others.share() > DISTURBED
        if busy and again < plan.runs:
            again += 1
            continue
        kept, disturbed = kept + 1, disturbed + busy
        for candidate, done in zip(candidates, rounds, strict=True):
            candidate.rounds.append(done)
        for rival, took in zip(due, times, strict=True):
            rival.times.append(took)
    if not again:
        return []
    return [f"other programs disturbed {again + disturbed} rounds: {again} were done again, {disturbed} counted"]


def _turn(
    candidates: Sequence[Candidate], rivals: Sequence[Contender], plan: Plan
) -> tuple[list[Round], list[LoopTimes]]:
    rounds = [candidate.subject.round(plan.work) for candidate in candidates]
    return rounds, [rival.round(candidates[0].subject, plan.work) for rival in rivals]


def _finish(
    candidate: Candidate, plan: Plan, ceilings: Ceilings | None, notes: list[str], progress: Progress
) -> tuple[Profile, list[Any]]:
    """The bundle's profile and its operators' events; what was found on the way is added to `notes`."""
    subject = candidate.subject
    stages = _stages(candidate, ceilings, notes)
    totals = tuple(Total(each.name, *_fields(each.wall), each.sum_s) for each in waits(candidate.rounds))
    operators: dict[str, tuple[Operator, ...]] = {}
    events: list[Any] = []
    if subject.engine.device == "cpu":
        progress(f"operators of {candidate.path}")
        operators, events = measure_operators(subject.plain.bundle, plan.work, plan.threads)
    profile = Profile(
        bundle=facts.bundle(subject.plain),
        workload=facts.workload(candidate.rounds[-1], subject, plan.work, plan.warm_up, plan.runs),
        stages=stages,
        totals=totals,
        memory=candidate.memory,
        operators=operators,
        overhead=_overhead(candidate.rounds[-1]),
        advice=advise(stages, totals, candidate.memory, subject.plain.manifest),
    )
    return profile, events


def _fields(found: Any) -> tuple[int, float, float, float]:
    return found.samples, found.p50_s, found.p90_s, found.p99_s


def _stages(candidate: Candidate, ceilings: Ceilings | None, notes: list[str]) -> tuple[Stage, ...]:
    measured = {OPEN_BUNDLE: [Sample(seconds) for seconds in candidate.open_s], **samples(candidate.rounds)}
    work = _work(candidate, measured, ceilings, notes)
    if apart := unsteady(measured):
        worst = ", ".join(f"{name} {share:.0%}" for name, share in sorted(apart.items(), key=lambda item: -item[1])[:4])
        notes.append(
            f"{candidate.path}: the halves of this run differ ({worst}); repeat with more --runs on a quieter machine"
        )
    return tuple(
        Stage(name, *_fields(timing([each.seconds for each in found])), work.get(name))
        for name, found in measured.items()
    )


def _work(
    candidate: Candidate, measured: dict[str, list[Sample]], ceilings: Ceilings | None, notes: list[str]
) -> dict[str, StageWork | None]:
    """Work of each stage; empty without onnx, which the note about ceilings has said."""
    try:
        from .counting import Counter, stage_work
    except ModuleNotFoundError:
        return {}
    counter = Counter(candidate.subject.plain.bundle)
    work = {name: stage_work(counter, found, ceilings) for name, found in measured.items()}
    if counter.unknown:
        notes.append(f"not counted, for want of a rule: {', '.join(sorted(counter.unknown))}")
    return work


def _overhead(turn: Round) -> Overhead:
    """Of a cold question: every span it recorded, at what one costs here."""
    phases = (turn.opening, turn.cold)
    spans = sum(len(phase.stages) + len(phase.graphs) for phase in phases)
    each_s = seconds_per_span()
    return Overhead(spans, each_s, spans * each_s / sum(phase.wall_s for phase in phases))


def _doubts(candidates: Sequence[Candidate], load_average: float) -> list[str]:
    """What a reader should know before believing the figures."""
    found = []
    for candidate in candidates:
        record = candidate.subject.plain.manifest.verification
        if record is None or not record.passed:
            found.append(f"{candidate.path} is UNVERIFIED: its answers may be wrong, and so its times")
    cores = len(os.sched_getaffinity(0))
    if load_average > BUSY_LOAD * cores:
        found.append(f"the machine was busy (load {load_average:.1f} on {cores} cores): times are too long")
    return found
