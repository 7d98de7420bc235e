"""Which frames of a video are looked at: uniformly spread, as the authors' evaluation does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine import Array
from .budget import VideoBudget

UNEVEN = 1.5  # an interval of so many medians means a variable frame rate
RATE_SLACK = 0.02  # a header's rate is believed where the frames' own times agree this well


@dataclass(frozen=True)
class Timeline:
    """A video's frames in the order they are shown: `seconds` float64 [F], rising; `rate` a second by the header."""

    seconds: Array
    rate: float = 0.0

    @property
    def span_s(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.seconds[-1] - self.seconds[0])

    @property
    def variable(self) -> bool:
        """Whether frames are unevenly spaced."""
        steps = np.diff(self.seconds)
        return bool(len(steps) > 1 and steps.max() > UNEVEN * np.median(steps))

    def duration_s(self) -> float:
        """Seconds that all frames are shown; by the header's rate where it is true, as qwen-vl-utils counts.

        Else the last frame counts as long as the median one: times rounded to the container's ticks then may end up on
        the other side of a half.
        """
        steps = np.diff(self.seconds)
        if not len(steps):
            return 0.0
        if not self.variable and abs(steps.mean() * self.rate - 1) < RATE_SLACK:
            return len(self.seconds) / self.rate
        return self.span_s + float(np.median(steps))


def frame_count(timeline: Timeline, budget: VideoBudget) -> int:
    """About `fps` frames a second, at most `max_frames` and no more than there are; even, where there are two."""
    total = len(timeline.seconds)
    wanted = round(min(timeline.duration_s() * budget.fps, budget.max_frames, total))
    return max(1, wanted // 2 * 2 if wanted >= 2 else wanted)


def chosen_frames(timeline: Timeline, count: int) -> Array:
    """Indices int64 [count] of the frames to look at, from the first to the last.

    Evenly spaced frames are counted (`round(linspace(0, F - 1, count))`, as qwen-vl-utils); where the rate varies, the
    picture on screen at evenly spaced times is taken.
    """
    total = len(timeline.seconds)
    if not timeline.variable:
        return np.round(np.linspace(0, total - 1, count)).astype(np.int64)
    times = np.linspace(timeline.seconds[0], timeline.seconds[-1], count)
    # Half a microsecond of slack: times are sums of floats, and containers count in microseconds at best.
    return np.searchsorted(timeline.seconds, times + 5e-7, side="right") - 1
