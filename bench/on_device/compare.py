"""Hold a device's answers against ONNX Runtime's on the CPU: the same media and questions through two bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime import load
from ...runtime.errors import NumericError, UsageError
from ...runtime.session import Model
from ...runtime.vision import encode
from ..medium import Medium
from ..synthetic import SyntheticMedia, random_medium
from .steps import Figures

# An image whose windows are cut, a video in several runs: (kind, temporal grids, height and width in patches).
MEDIA = (("image", (1, 10, 14)), ("image", (1, 32, 32)), ("video", (5, 16, 18)))
QUESTION = "Which of these is shown?"
OPTIONS = ("a red disc", "a blue square", "nothing", "a letter")
STEPS = 4

FLOAT_COSINE = 0.999
"""float16 and bfloat16 against float32. A naive float16 build of this encoder is reported at 0.14."""
QUANTIZED_COSINE = 0.9
"""Says that the plan is sound; what quantization costs is for `reflectrt verify` and benchmarks to say."""
FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Outcome:
    """One medium: its embeddings, the hidden state after each reflection step, the options' log-probabilities."""

    embeddings: NDArray[np.float32]
    reflection: NDArray[np.float32]
    scores: NDArray[np.float64]


def expected(bundle: Path) -> list[Outcome]:
    """What ONNX Runtime says on the CPU. The model is gone when this returns: a device may share its memory."""
    return outcomes(load(bundle, device="cpu"))


def outcomes(model: Model) -> list[Outcome]:
    """Every medium through a model."""
    values = model.manifest.model.sizes().patch_values
    return [_outcome(model, random_medium(kind, grid, seed, values)) for seed, (kind, grid) in enumerate(MEDIA)]


def _outcome(model: Model, medium: Medium) -> Outcome:
    embeddings = model.engine.download(encode(model.engine, model.manifest.model, medium.patches, medium.grid))
    answer = model.open(SyntheticMedia(medium)).ask(QUESTION, OPTIONS, steps=STEPS, reflect="always")
    scores = np.log(np.array(list((answer.option_scores or {}).values()), np.float64))
    return Outcome(embeddings, answer.reflection, scores)


def compare(model: Model, wanted: list[Outcome]) -> Figures:
    """The worst agreement of embeddings and of every reflection step; NumericError where it is no agreement."""
    found = outcomes(model)
    vision = min(cosine(a.embeddings, b.embeddings) for a, b in zip(found, wanted, strict=True))
    steps = [
        cosine(mine, theirs)
        for a, b in zip(found, wanted, strict=True)
        for mine, theirs in zip(a.reflection, b.reflection, strict=True)
    ]
    limit = FLOAT_COSINE if model.manifest.precision in FLOATS else QUANTIZED_COSINE
    worst = min([vision, *steps])
    if not worst >= limit:
        reached = f"vision {vision:.5f}, reflection {min(steps, default=1):.5f}"
        raise NumericError(
            f"the device does not agree with ONNX Runtime: {reached}, at least {limit} is due; send this report back"
        )
    return {
        "vision_cosine": vision,
        "reflection_cosines": steps,
        "same_option": sum(int(a.scores.argmax() == b.scores.argmax()) for a, b in zip(found, wanted, strict=True)),
        "media": len(found),
        "score_difference": max(float(np.abs(a.scores - b.scores).max()) for a, b in zip(found, wanted, strict=True)),
    }


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine of two arrays of one shape, seen as vectors."""
    if a.shape != b.shape:
        raise UsageError(f"the bundles differ: {a.shape} and {b.shape}; export both from the same checkpoint")
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
