"""From measurements to one JSON: times, shares of the ceilings measured beside them, and gains over the rival."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import transformers

from . import work
from .ceilings import Ceilings
from .measure import GRID, Answers, Stages
from .rival import RivalTimes
from .shape import TEXT_7B, VISION_7B
from .work import Work

WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "int8-weights": 1 + 2 / 128, "fp8": 1 + 4 / 384, "int4": 0.5 + 2 / 32}
"""Bytes of a weight with its share of the scales: 16 bits for 128 (a whole channel's, repeated) or 32 weights; of fp8
32 bits for 128 in `down_proj`, which is nearly a third of the weights, and for a channel elsewhere."""
TOKENS = GRID[0] * GRID[1] * GRID[2] // VISION_7B.merge**2


def environment() -> dict[str, str]:
    """Device and versions of this run."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def stages_report(
    stages: Stages, ceilings: Ceilings, weight_bytes: float = 2.0, cache_itemsize: int = 2
) -> dict[str, Any]:
    """Seconds of each stage, and its share of the ceiling that binds it."""
    patches, grid_patches = GRID[0] * GRID[1] * GRID[2], GRID[1] * GRID[2]
    return asdict(stages) | {
        "vision_share": _share(work.vision(VISION_7B, patches, grid_patches), stages.vision_s, ceilings),
        "prefill_share": _share(work.prefill(TEXT_7B, TOKENS), stages.prefill_s, ceilings),
        "step_share": _share(work.step(TEXT_7B, TOKENS, weight_bytes, cache_itemsize), stages.step_s, ceilings),
    }


def _share(least: Work, seconds: float, ceilings: Ceilings) -> float:
    """The floor over the time: what the operations or the bytes would take at the ceiling, whichever is more."""
    floor = max(least.operations / ceilings.matmul_tflops, least.bytes / ceilings.copy_tbps) / 1e12
    return floor / seconds


def answers_report(answers: Answers) -> dict[str, Any]:
    """Seconds of whole answers."""
    return {name: value for name, value in asdict(answers).items() if name != "reflection"}


def rival_report(times: RivalTimes) -> dict[str, Any]:
    """Seconds of the rival's answer; the median of its steps, and of the dummies before them."""
    return {
        "vision_s": times.vision_s,
        "prefill_s": times.prefill_s,
        "step_s": float(np.median(times.step_s)),
        "dummies_s": float(np.median(times.dummy_s)),
        "decoder_runs": 1 + len(times.step_s),
        "total_s": times.total_s,
    }


def gains(ours: Answers, published: RivalTimes, plain: RivalTimes) -> dict[str, float]:
    """How many times faster whole answers are, cold and further ones, than the loop as published and without dummies.

    The rival keeps nothing between questions: a further one costs it as much as the first.
    """
    return {
        "cold_over_published": published.total_s / ours.cold_s,
        "cold_over_plain": plain.total_s / ours.cold_s,
        "follow_up_over_published": published.total_s / ours.follow_up_s,
        "follow_up_over_plain": plain.total_s / ours.follow_up_s,
    }


def cosines(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> list[float]:
    """Cosine of each reflection step's hidden state, ours and the rival's, over the same weights."""
    pairs = zip(ours.astype(np.float64), theirs.astype(np.float64), strict=True)
    return [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in pairs]
