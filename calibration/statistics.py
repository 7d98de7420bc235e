"""Intervals of shares and of differences of paired shares."""

from __future__ import annotations

from math import sqrt

Z95 = 1.959964  # standard normal quantile of 97.5 %


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, weight = correct / total, Z95**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = Z95 * sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(gained: int, lost: int, total: int) -> tuple[float, float]:
    """95 % interval of the change of a share over the same questions, `gained` and `lost` of them (Wald, paired).

    With half a question added to either side, so that no change at all still has a width.
    """
    if total == 0:
        return -1.0, 1.0
    change = (gained - lost) / total
    spread = sqrt((gained + lost + 1) - (gained - lost) ** 2 / total) / total
    return max(-1.0, change - Z95 * spread), min(1.0, change + Z95 * spread)
