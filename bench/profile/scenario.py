"""One round of what a user does: open a medium and ask, ask again, and ask for free text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from ...runtime.answer import Answer
from ...runtime.engine import Engine
from ...runtime.errors import LimitError
from ...runtime.manifest import Manifest
from ...runtime.media import Media
from ...runtime.options import AskOptions, reflection_steps
from ...runtime.prompt import MediaKind, Question
from ...runtime.session import Model, Session
from .media import DecodeTimer, Source, open_medium
from .recorder import GraphRun, Log, RecordingEngine, Span, SpanClock

OPTIONS = ("yes", "no", "perhaps", "never")
FREE_TOKENS = 16
"""Tokens of the free text: enough for percentiles, short beside a long context."""
FOLLOW_UPS, MORE_FOLLOW_UPS, FOLLOW_UPS_S = 5, 40, 0.5
"""Further questions a round: at least so many, and up to so many while they take no longer than this (seconds).

A small model's stages take a millisecond or less, where a handful of samples have no median to speak of.
"""


@dataclass(frozen=True)
class Workload:
    """What is asked of every bundle: a medium, a question of about so many tokens, reflection steps (None: default)."""

    source: Source
    question_tokens: int
    steps: int | None


@dataclass(frozen=True)
class Phase:
    """One thing the user waited for."""

    start_s: float
    end_s: float
    stages: Sequence[Span]
    graphs: Sequence[GraphRun]

    @property
    def wall_s(self) -> float:
        """How long the user waited, in seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Round:
    """A medium opened, a multiple-choice question on it, more of them, and a free text; `decode_s` within `reading`."""

    opening: Phase
    cold: Phase
    follow_ups: tuple[Phase, ...]
    free: Phase
    probe_s: float
    """Opening the file and reading its index, before any pixel."""
    decode_s: float | None
    """None where frames are made up: nothing is decoded."""
    answer: Answer
    context_tokens: int


class Subject:
    """A bundle under the profiler: the runtime's model over a recording engine."""

    def __init__(self, model: Model) -> None:
        self.plain, self.log = model, Log()
        self.engine: Engine = model.engine
        bundle = replace(model.bundle, manifest=endless(model.manifest))
        self.model = Model(bundle, RecordingEngine(model.engine, self.log), lambda: SpanClock(self.log))

    def round(self, work: Workload, follow_ups: int | None = None) -> Round:
        """Do everything once, and say when it happened; `follow_ups` None asks as many as half a second allows."""
        self.log.take()
        timer = DecodeTimer()
        start = perf_counter()
        medium = open_medium(self.model, work.source)
        probe_s = perf_counter() - start
        timer.watch(medium)
        question = question_of(self.model, medium.kind, work.question_tokens)
        begin = perf_counter()
        session = self.model.open(medium, reserve_tokens=reserve(self.model, medium, question, work.steps))
        opening = self._phase(begin - probe_s)
        cold, answer = self._ask(session, question, work.steps)
        asked = tuple(self._follow_ups(session, question, work.steps, follow_ups))
        free, _ = self._ask(session, Question(question.text), work.steps)
        context = self.model.need(question, medium.kind, AskOptions(steps=work.steps)).total + medium.visual_tokens
        decode_s = timer.seconds if isinstance(work.source, Path) else None
        return Round(opening, cold, asked, free, probe_s, decode_s, answer, context)

    def _follow_ups(
        self, session: Session, question: Question, steps: int | None, count: int | None
    ) -> Iterator[Phase]:
        least, most = (count, count) if count else (FOLLOW_UPS, MORE_FOLLOW_UPS)
        begin = perf_counter()
        for number in range(most):
            if number >= least and perf_counter() - begin > FOLLOW_UPS_S:
                return
            yield self._ask(session, question, steps)[0]

    def _ask(self, session: Session, question: Question, steps: int | None) -> tuple[Phase, Answer]:
        start = perf_counter()
        answer = session.ask(question.text, question.options, steps=steps, reflect="always", max_new_tokens=FREE_TOKENS)
        return self._phase(start), answer

    def _phase(self, start_s: float) -> Phase:
        end_s, log = perf_counter(), self.log.take()
        return Phase(start_s, end_s, log.stages, log.graphs)


def reserve(model: Model, medium: Media, question: Question, steps: int | None) -> int:
    """Room for a round's longest question, in tokens. Raises LimitError, naming the option that takes most."""
    how = AskOptions(steps=steps, max_new_tokens=FREE_TOKENS)
    # In free text every token may open a window of K steps and one closing token.
    windows = 1 + FREE_TOKENS if model.manifest.reflection else 0
    reflecting = windows * (reflection_steps(model.manifest, medium.kind, how) + 1)
    asking = max(model.need(asked, medium.kind, how).total for asked in (question, Question(question.text)))
    held, limit = medium.visual_tokens + reflecting + asking, model.manifest.model.max_context
    if held > limit:
        takes = {
            "--frames, --size or --media": medium.visual_tokens,
            "--steps": reflecting,
            "--question-tokens": asking,
        }
        most = max(takes, key=lambda name: takes[name])
        raise LimitError(f"a round takes up to {held} tokens, the context holds {limit}; pass a smaller {most}")
    return reflecting + asking


def endless(manifest: Manifest) -> Manifest:
    """The manifest without stop tokens, so that a free text has the length that was asked for."""
    return replace(manifest, prompt=replace(manifest.prompt, stop=()))


def question_of(model: Model, kind: MediaKind, tokens: int) -> Question:
    """A multiple-choice question whose prompt, template included, has about so many tokens (or as few as it can)."""
    words = 1
    if tokens > model.manifest.model.max_context:
        raise LimitError(
            f"a question of {tokens} tokens does not fit a context of {model.manifest.model.max_context}; "
            "pass a smaller --question-tokens"
        )
    while (count := prompt_tokens(model, _question(words), kind)) < tokens:
        words += max(1, (tokens - count) // 2)
    return _question(words)


def _question(words: int) -> Question:
    return Question("Which" + " one" * words + "?", OPTIONS)


def prompt_tokens(model: Model, question: Question, kind: MediaKind) -> int:
    """Tokens of a question's prompt after the medium, template included."""
    return len(model.tokenizer.encode(question.prompt(kind))) + len(model.manifest.prompt.closing)
