"""How long a device takes: a video opened, asked, asked again, and free text, stage by stage."""

from __future__ import annotations

from statistics import median

from ...runtime.answer import Answer
from ...runtime.session import Model
from ..synthetic import SyntheticMedia, random_medium
from .compare import OPTIONS, QUESTION, STEPS
from .steps import Figures

FRAME = (32, 32)
"""Patches of one frame: 448 x 448 px, 256 visual tokens for two frames."""
NEW_TOKENS = 32


def time_model(model: Model, frames: int, runs: int) -> Figures:
    """Median seconds over `runs` after one that warms up, of a video of `frames` random frames."""
    values = model.manifest.model.sizes().patch_values
    video = SyntheticMedia(random_medium("video", (-(-frames // 2), *FRAME), 0, values))
    first, again, free = [], [], []
    for _ in range(runs + 1):
        session = model.open(video, reserve_tokens=256 + NEW_TOKENS)
        first.append(session.ask(QUESTION, OPTIONS, steps=STEPS))
        again.append(session.ask(QUESTION, OPTIONS, steps=STEPS))
        free.append(session.ask("Describe the video.", steps=STEPS, max_new_tokens=NEW_TOKENS))
    decoded = [len(answer.tokens) / answer.timings["decode"] for answer in free[1:]]
    return {
        "frames": frames,
        "visual_tokens": video.visual_tokens,
        "runs": runs,
        "first_answer_s": _medians(first[1:]),
        "next_answer_s": _medians(again[1:]),
        "tokens_per_second": median(decoded),
    }


def _medians(answers: list[Answer]) -> dict[str, float]:
    return {stage: median(answer.timings.get(stage, 0.0) for answer in answers) for stage in answers[0].timings}
