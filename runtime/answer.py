"""What an answer and an opened medium look like to the caller."""

from __future__ import annotations

import string
from dataclasses import dataclass

from .engine import Array


@dataclass(frozen=True)
class Answer:
    """The answer to one question."""

    question: str
    text: str
    """The answer in words: the chosen option's text, or what the model wrote."""
    option: str | None
    """The chosen option's letter; None for free text."""
    option_scores: dict[str, float] | None
    """Probability of each letter among the options; None for free text."""
    tokens: tuple[int, ...]
    """Ids from `<BOR>` on, placeholders included."""
    reflection: Array
    """float32 [K, hidden]: the decoder's state after the final norm, after each reflection step."""
    forwards: int
    """Decoder runs for this question, its own text included."""
    timings: dict[str, float]
    """Seconds by stage; reading, vision and the medium's prefill count for the first question only."""


@dataclass(frozen=True)
class MediaReport:
    """What was read of one medium."""

    path: str
    kind: str
    frames: int
    grid: tuple[int, int, int]
    """Temporal grids, height and width in patches."""
    visual_tokens: int
    seconds_per_grid: float
    warnings: tuple[str, ...]


def letter(option: int) -> str:
    """`A` for the first option."""
    return string.ascii_uppercase[option]
