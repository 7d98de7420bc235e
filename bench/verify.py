"""Hold a bundle against PyTorch: the same questions through the reference loop and the bundle, figure by figure."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..export.checkpoint import Checkpoint
from ..runtime.bundle import open_bundle
from ..runtime.engines.onnxruntime import OrtCpuEngine
from ..runtime.errors import CompatibilityError, ResourceError
from ..runtime.manifest import Manifest, Verification
from ..runtime.memory import available_bytes
from ..runtime.session import Model
from ..runtime.vision import encode
from .reference import Medium, Reference, ReferenceAnswer
from .synthetic import SyntheticMedia, random_medium

Progress = Callable[[str], None]

ANSWER_TOKENS = 8
LIBRARIES_BYTES = 600_000_000  # torch, transformers and ONNX Runtime in one process, measured


@dataclass(frozen=True)
class Case:
    """One question to ask both; `options` 0 is free text."""

    media: tuple[Medium, ...]
    question: str
    options: int
    steps: int


@dataclass(frozen=True)
class Limits:
    """What a verification must reach. Float32: what our graphs reach on random checkpoints, with a margin of ten."""

    min_cosine: float = 0.99999
    """Of embeddings and of the hidden state after each reflection step."""
    max_logit_difference: float = 1e-3


@dataclass(frozen=True)
class Comparison:
    """One case's figures."""

    tokens_equal: bool
    vision_cosine: float
    reflection_cosines: tuple[float, ...]
    logit_difference: float
    """Largest absolute difference over the letters' logits; log-probabilities for both."""


def default_cases(manifest: Manifest, seed: int = 0) -> list[Case]:
    """An image, two images and a video, multiple choice and free text, with windows cut at the edge."""
    values = manifest.model.sizes().patch_values
    image = random_medium("image", (1, 10, 14), seed, values)
    other = random_medium("image", (1, 6, 18), seed + 1, values)
    video = random_medium("video", (3, 12, 10), seed + 2, values)
    steps = [4, 1, 0] if manifest.reflection else [0]
    return [
        case
        for k in steps
        for case in (
            Case((image,), "Which digit is on the red disc?", 4, k),
            Case((video,), "Which shape flashes first?", 4, k),
            Case((image, other), "What do both pictures show?", 0, k),
        )
    ]


def check_memory(parameters: int) -> None:
    """Raise ResourceError where a verification of so many parameters would not fit: one side in float32 at a time."""
    need, free = int(parameters * 4 * 1.1) + LIBRARIES_BYTES, available_bytes()
    if need > free:
        raise ResourceError(
            f"the comparison with PyTorch needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
            "export with --no-verify here and run `reflectrt verify` on a larger machine"
        )


def check_source(bundle: Path, checkpoint: Checkpoint) -> None:
    """Raise CompatibilityError where a bundle was exported from another checkpoint."""
    source, found = open_bundle(bundle).manifest.source, checkpoint.fingerprint()
    if source.fingerprint != found:
        raise CompatibilityError(
            f"{bundle} was exported from {source.name} ({source.fingerprint[:12]}), not from "
            f"{checkpoint.source} ({found[:12]}); pass the checkpoint that it was made from"
        )


def verify(
    bundle: Path,
    checkpoint: Path,
    cases: Sequence[Case] | None = None,
    limits: Limits = Limits(),
    progress: Progress = lambda _: None,
) -> Verification:
    """Ask both sides the same and compare. One side is in memory at a time."""
    progress("PyTorch")
    opened = open_bundle(bundle)
    chosen = list(cases or default_cases(opened.manifest))
    expected = _ask_reference(checkpoint, chosen)
    gc.collect()
    progress("bundle")
    model = Model(opened, OrtCpuEngine(opened))
    results = [_compare(model, case, wanted) for case, wanted in zip(chosen, expected, strict=True)]
    return summarise(results, limits)


@dataclass(frozen=True)
class Expected:
    """What PyTorch says of a case: its answer and the media's embeddings [tokens, hidden]."""

    answer: ReferenceAnswer
    embeddings: tuple[NDArray[np.float32], ...]


def _ask_reference(checkpoint: Path, cases: Sequence[Case]) -> list[Expected]:
    reference = Reference(checkpoint)
    return [
        Expected(
            reference.answer(
                case.media,
                case.question,
                option_texts(case.options),
                steps=case.steps,
                reflect="always",
                max_new_tokens=ANSWER_TOKENS,
            ),
            tuple(reference.vision(medium) for medium in case.media),
        )
        for case in cases
    ]


def option_texts(count: int) -> list[str]:
    """Options to choose from."""
    return [f"option {number}" for number in range(1, count + 1)]


def _compare(model: Model, case: Case, expected: Expected) -> Comparison:
    session = model.open(*(SyntheticMedia(medium) for medium in case.media))
    answer = session.ask(
        case.question,
        option_texts(case.options),
        steps=case.steps,
        reflect="always",
        max_new_tokens=ANSWER_TOKENS,
    )
    embeddings = [_embeddings(model, medium) for medium in case.media]
    wanted = expected.answer
    return Comparison(
        tokens_equal=answer.tokens == wanted.tokens,
        vision_cosine=min(map(cosine, embeddings, expected.embeddings)),
        reflection_cosines=tuple(map(cosine, answer.reflection, wanted.reflection)),
        logit_difference=_score_difference(answer.option_scores, wanted.option_logits),
    )


def _embeddings(model: Model, medium: Medium) -> NDArray[np.float32]:
    encoded = encode(model.engine, model.manifest.model, medium.patches, medium.grid)
    array = model.engine.download(encoded)
    return array.reshape(-1, array.shape[-1])


def _score_difference(scores: dict[str, float] | None, logits: NDArray[np.float32] | None) -> float:
    """Largest difference of the options' log-probabilities."""
    if scores is None or logits is None:
        return 0.0
    wanted = logits - np.logaddexp.reduce(logits)
    return float(np.abs(np.log(list(scores.values())) - wanted).max())


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine of two arrays of one shape, seen as vectors, in float64."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def summarise(results: Sequence[Comparison], limits: Limits) -> Verification:
    """The worst of each figure, and whether all are within the limits."""
    cosines = [value for result in results for value in result.reflection_cosines]
    figures = {
        "questions": float(len(results)),
        "tokens_equal": sum(result.tokens_equal for result in results) / len(results),
        "vision_cosine": min(result.vision_cosine for result in results),
        "logit_difference": max(result.logit_difference for result in results),
    }
    if cosines:
        figures["reflection_cosine"] = min(cosines)
    passed = (
        figures["tokens_equal"] == 1
        and min(figures["vision_cosine"], *cosines, 1.0) >= limits.min_cosine
        and figures["logit_difference"] <= limits.max_logit_difference
    )
    return Verification(passed, figures)
