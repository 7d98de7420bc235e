"""Choosing a token from logits: greedy, or temperature and top-p with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .engine import Array
from .errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `top_p` keeps the likeliest tokens that sum to it."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; pass 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; pass a number above 0, at most 1")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; pass 0 or a positive integer")


GREEDY = Sampling()


class Sampler:
    """Draws token after token; the same seed draws the same tokens from the same logits."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: Array) -> int:
        """A token id from logits float32 [V]; -inf marks a token that may not come."""
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        below = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # a temperature near 0 leaves the likeliest alone, all others at -inf
            probabilities = np.exp(below / self._sampling.temperature)
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        kept = order[: _count_within(probabilities[order], self._sampling.top_p)]
        weights = probabilities[kept] / probabilities[kept].sum()
        return int(self._random.choice(kept, p=weights))


def _count_within(falling: Array, top_p: float) -> int:
    """How many of the falling probabilities it takes to reach `top_p`, at least one."""
    return int(np.searchsorted(np.cumsum(falling), top_p - 1e-12)) + 1
