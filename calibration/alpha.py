"""Which SmoothQuant alpha each group of Linears gets: given, or the one that harms its outputs least.

SmoothQuant's 0.5 for all is a guess: how much of an outlier the readers' weights can take depends on them. `LeastError`
tries: it rounds weights and sampled inputs as the bundle will, and compares the Linears' outputs, as AWQ (arXiv
2306.00978) does for weights. On `assets/reference` the sum of all groups' errors falls from 0.076 to 0.034.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..export.quantize.fold import reader_factors
from ..export.quantize.qdq import NumberType
from ..export.recipe import Fold
from .observations import Array
from .sources import Kind

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What is tried. Below 0.3 nothing was ever chosen on `assets/reference`."""
ROWS = 256
"""Sampled rows of each source that judge."""

FoldAt = Callable[[float], Fold]
"""A group's fold at an alpha."""
Choose = Callable[[Sequence[Array], FoldAt], Fold]
"""From the readers' weights, each [out, in], and the fold at any alpha to the fold to take."""


def given(alpha: float) -> Choose:
    """The same alpha for every group."""
    return lambda _, fold_at: fold_at(alpha)


@dataclass(frozen=True)
class LeastError:
    """The alpha with the least error of the readers' outputs, relative to their power, every source counting alike."""

    kind: NumberType
    maxima: Mapping[str, Array]
    """Largest magnitude of each channel [in] of a Linear's input, by the weight's name."""
    rows: Callable[[str], Mapping[Kind, Array]]
    """Sampled rows [n, in] of a Linear's input by their source."""

    def __call__(self, weights: Sequence[Array], fold_at: FoldAt) -> Fold:
        """The best of `ALPHAS`."""
        return min(map(fold_at, ALPHAS), key=lambda fold: self._error(weights, fold))

    def _error(self, weights: Sequence[Array], fold: Fold) -> float:
        reader, factors = fold.readers[0], reader_factors(fold)
        step = np.asarray((self.maxima[reader] / factors).max() / self.kind.limit, np.float32)
        rounded = [self._rounded_weight(weight.T * factors[:, None]) for weight in weights]
        return sum(self._relative(weights, rounded, x, factors, step) for x in self._some_rows(reader))

    def _rounded_weight(self, weight: Array) -> Array:
        """A weight [in, out] as the bundle will hold it."""
        scale = self.kind.scale(weight, 0)
        return self.kind.quantize(weight, scale).astype(np.float32) * scale

    def _some_rows(self, reader: str) -> list[Array]:
        return [rows[:ROWS].astype(np.float32) for rows in self.rows(reader).values()]

    def _relative(
        self, weights: Sequence[Array], rounded: Sequence[Array], x: Array, factors: Array, step: Array
    ) -> float:
        """Error over power of the outputs for inputs `x` [n, in], over all readers; nothing where all are zero."""
        x_rounded = self.kind.quantize(x / factors, step).astype(np.float32) * step if step > 0 else x
        wanted = [x @ weight.T for weight in weights]
        found = [x_rounded @ weight for weight in rounded]
        power = sum(float(np.square(out).sum()) for out in wanted)
        error = sum(float(np.square(a - b).sum()) for a, b in zip(found, wanted, strict=True))
        return error / power if power else 0.0
