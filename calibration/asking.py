"""Ask a bundle many questions and keep everything that two bundles are compared by. Needs the lean runtime only."""

from __future__ import annotations

import gc
import multiprocessing
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ..runtime import contract
from ..runtime.bundle import open_bundle
from ..runtime.engine import Array, Buffer
from ..runtime.engines.onnxruntime import OrtCpuEngine, OrtGraph
from ..runtime.errors import LimitError, MediaError, ReflectRTError
from ..runtime.session import Model, Session
from .samples import Sample

DRIFT_STEPS = 8
"""Reflection steps of the questions that show how the drift grows; twice what the authors take."""
FREE_TEXT_TOKENS = 32


@dataclass(frozen=True)
class Asking:
    """How to ask: frames of a clip at most, of how many questions the drift and the logits are kept."""

    max_frames: int | None = None
    drift_questions: int = 32
    logit_questions: int = 256


@dataclass(frozen=True)
class Asked:
    """One answer."""

    option: str | None
    tokens: tuple[int, ...]
    seconds: float
    """Vision, prefill, reflection and answer; without reading the medium."""
    drift: Array | None
    """[DRIFT_STEPS, hidden]: the states after each step of a longer reflection on the same question."""
    logits: Array | None
    """[vocab] where the answer is chosen."""
    error: str = ""


@dataclass(frozen=True)
class Side:
    """One bundle's answers, its size on disk and the memory that its process took at most (bytes)."""

    asked: tuple[Asked, ...]
    peak_bytes: int
    size_bytes: int
    precision: str
    fingerprint: str
    """Of the checkpoint that it was made from."""


Progress = Callable[[int, int], None]


class HeadTap(OrtCpuEngine):
    """An engine that remembers the last logits."""

    logits: Array | None = None

    def graph(self, name: str) -> OrtGraph:
        """A graph by its name in the contract; the head tells its logits."""
        graph = super().graph(name)
        return _TappedHead(graph, self) if name == contract.HEAD else graph


class _TappedHead(OrtGraph):
    def __init__(self, head: OrtGraph, engine: HeadTap) -> None:
        self._head, self._engine = head, engine

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run, and keep the logits."""
        self._head.run(inputs, outputs)
        self._engine.logits = self._engine.download(outputs["logits"]).reshape(-1)


def ask_all(bundle: Path, samples: Sequence[Sample], how: Asking) -> Iterator[Asked]:
    """The answers of a bundle, one by one."""
    opened = open_bundle(bundle)
    engine = HeadTap(opened)
    model = Model(opened, engine)
    for number, sample in enumerate(samples):
        try:
            yield _ask(model, engine, sample, how, number)
        except (LimitError, MediaError) as error:
            yield Asked(None, (), 0.0, None, None, str(error))


def _ask(model: Model, engine: HeadTap, sample: Sample, how: Asking, number: int) -> Asked:
    session = model.open(*sample.media, max_frames=how.max_frames)
    answer = session.ask(sample.question, sample.options, max_new_tokens=FREE_TEXT_TOKENS)
    logits = engine.logits if number < how.logit_questions and sample.options else None
    return Asked(
        option=answer.option,
        tokens=answer.tokens,
        seconds=answer.timings["total"] - answer.timings.get("read", 0.0),
        drift=_drift(session, sample) if number < how.drift_questions and model.manifest.reflection else None,
        logits=logits,
    )


def _drift(session: Session, sample: Sample) -> Array:
    """The states of a longer reflection; multiple choice, since only there every step is forced."""
    options = sample.options or ("yes", "no")
    return session.ask(sample.question, options, steps=DRIFT_STEPS, reflect="always").reflection.astype(np.float32)


def ask_apart(bundle: Path, samples: Sequence[Sample], how: Asking, progress: Progress) -> Side:
    """Ask in a process of its own, so that its memory can be told; its errors are raised here."""
    gc.collect()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, bundle, tuple(samples), how), daemon=True)
    process.start()
    theirs.close()
    try:
        return _collect(ours, bundle, len(samples), progress)
    finally:
        ours.close()
        process.join(timeout=5)
        process.terminate()  # only where it did not end by itself: an interrupt here, or it hangs


def _serve(pipe: Connection, bundle: Path, samples: Sequence[Sample], how: Asking) -> None:
    try:
        for asked in ask_all(bundle, samples, how):
            pipe.send(asked)
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except ReflectRTError as error:
        pipe.send(error)


def _collect(pipe: Connection, bundle: Path, count: int, progress: Progress) -> Side:
    answers: list[Asked] = []
    while True:
        try:
            found = pipe.recv()
        except EOFError:
            raise ReflectRTError(f"the process that asked {bundle} ended early; is there enough memory?") from None
        if isinstance(found, ReflectRTError):
            raise found
        if isinstance(found, int):
            break
        answers.append(found)
        progress(len(answers), count)
    manifest = open_bundle(bundle).manifest
    size = sum(entry.size for entry in manifest.files.values())
    return Side(tuple(answers), found, size, manifest.precision, manifest.source.fingerprint)
