"""What a quantization has cost: a bundle's answers against those of the float bundle of the same checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..runtime.engine import Array
from ..runtime.manifest import Verification
from .asking import Asked, Side
from .samples import Sample
from .statistics import paired_difference, wilson

LEAST_AGREEMENT = {"int8": 0.99, "fp8": 0.995, "int8-weights": 0.995, "int4": 0.98}
"""Share of questions that a precision must answer as float32 does. Source: the project's own acceptance figures."""


@dataclass(frozen=True)
class Share:
    """A share of questions with its 95 % interval (Wilson)."""

    count: int
    total: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Step:
    """Cosine of the hidden states after one reflection step: over the questions the mean and the worst."""

    step: int
    mean_cosine: float
    least_cosine: float


@dataclass(frozen=True)
class Ratios:
    """The quantized bundle over the float one; `speed` over 1 is faster."""

    size: float
    memory: float
    speed: float


@dataclass(frozen=True)
class Report:
    """A comparison of two bundles over the same questions."""

    precision: str
    against: str
    questions: int
    unread: tuple[str, ...]
    agreement: Share
    """Same letter."""
    flips: dict[str, int]
    """right to wrong, wrong to right, wrong to another wrong."""
    accuracy: Share
    float_accuracy: Share
    accuracy_change: tuple[float, float, float]
    """Change of accuracy with its 95 % interval (paired)."""
    drift: tuple[Step, ...]
    kl_mean: float | None
    """Mean Kullback-Leibler divergence (nats) of the whole vocabulary where the answer is chosen; None: no logits."""
    kl_worst: float | None
    top1: Share
    """Same most probable token of the whole vocabulary."""
    size_bytes: tuple[int, int]
    peak_bytes: tuple[int, int]
    median_seconds: tuple[float, float]
    ratios: Ratios

    def passed(self) -> bool:
        """Whether the least agreement lies within the interval, or below it.

        A share alone would fail a good bundle by chance: one flip in 100 questions says 94.6 to 99.8 %.
        """
        return max(self.agreement.share, self.agreement.high) >= LEAST_AGREEMENT.get(self.precision, 1.0)


def compare(quantized: Side, plain: Side, samples: Sequence[Sample]) -> Report:
    """The report; questions that either side could not read are named and left out."""
    triples = list(zip(quantized.asked, plain.asked, samples, strict=True))
    unread = tuple(f"{s.id}: {a.error or b.error}" for a, b, s in triples if a.error or b.error)
    pairs = [(a, b, s.label) for a, b, s in triples if not (a.error or b.error)]
    same = sum(_answer(a) == _answer(b) for a, b, _ in pairs)
    right = [(_right(a, label), _right(b, label)) for a, b, label in pairs if label]
    gained, lost = right.count((True, False)), right.count((False, True))
    logits = [(a.logits, b.logits) for a, b, _ in pairs if a.logits is not None and b.logits is not None]
    divergences = [_divergence(theirs, ours) for ours, theirs in logits]
    tops = [int(ours.argmax()) == int(theirs.argmax()) for ours, theirs in logits]
    seconds = (_median(quantized), _median(plain))
    return Report(
        precision=quantized.precision,
        against=plain.precision,
        questions=len(pairs),
        unread=unread,
        agreement=_share(same, len(pairs)),
        flips={
            "right to wrong": lost,
            "wrong to right": gained,
            "wrong to wrong": len(pairs) - same - lost - gained,
        },
        accuracy=_share(sum(ours for ours, _ in right), len(right)),
        float_accuracy=_share(sum(theirs for _, theirs in right), len(right)),
        accuracy_change=((gained - lost) / max(1, len(right)), *paired_difference(gained, lost, len(right))),
        drift=_drift([(a, b) for a, b, _ in pairs]),
        kl_mean=float(np.mean(divergences)) if divergences else None,
        kl_worst=float(np.max(divergences)) if divergences else None,
        top1=_share(sum(tops), len(tops)),
        size_bytes=(quantized.size_bytes, plain.size_bytes),
        peak_bytes=(quantized.peak_bytes, plain.peak_bytes),
        median_seconds=seconds,
        ratios=Ratios(
            quantized.size_bytes / plain.size_bytes,
            quantized.peak_bytes / plain.peak_bytes,
            seconds[1] / seconds[0] if seconds[0] else 0.0,
        ),
    )


def verification(report: Report) -> Verification:
    """What a manifest keeps of a report."""
    figures = {
        "questions": float(report.questions),
        "agreement": report.agreement.share,
        "agreement_low": report.agreement.low,
        "agreement_high": report.agreement.high,
        "accuracy": report.accuracy.share,
        "accuracy_low": report.accuracy.low,
        "accuracy_high": report.accuracy.high,
        "float_accuracy": report.float_accuracy.share,
        "top1": report.top1.share,
        "size_ratio": report.ratios.size,
        "memory_ratio": report.ratios.memory,
        "speed_ratio": report.ratios.speed,
    }
    if report.kl_mean is not None:
        figures["kl_mean"] = report.kl_mean
    figures |= {f"cosine_step_{step.step}": step.mean_cosine for step in report.drift}
    return Verification(report.passed(), figures)


def to_json(report: Report) -> str:
    """The report as one JSON object."""
    return json.dumps(asdict(report) | {"passed": report.passed()})


def _answer(asked: Asked) -> object:
    return asked.option if asked.option is not None else asked.tokens


def _right(asked: Asked, label: str) -> bool:
    return asked.option == label


def _share(count: int, total: int) -> Share:
    return Share(count, total, count / total if total else 0.0, *wilson(count, total))


def _divergence(wanted: Array, found: Array) -> float:
    """KL(wanted || found) of two rows of logits, in nats."""
    p, q = (logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64)) for logits in (wanted, found))
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def _drift(pairs: Sequence[tuple[Asked, Asked]]) -> tuple[Step, ...]:
    both = [(a.drift, b.drift) for a, b in pairs if a.drift is not None and b.drift is not None]
    if not both:
        return ()
    ours, theirs = (np.stack(states).astype(np.float64) for states in zip(*both, strict=True))
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosines = (ours * theirs).sum(axis=-1) / norms  # [questions, steps]
    return tuple(Step(number, float(column.mean()), float(column.min())) for number, column in enumerate(cosines.T, 1))


def _median(side: Side) -> float:
    seconds = [asked.seconds for asked in side.asked if not asked.error]
    return float(np.median(seconds)) if seconds else 0.0
