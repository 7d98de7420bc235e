"""M-RoPE positions: three numbers a token (time, height, width), as transformers 4.54 gives them.

The authors trained and evaluated with transformers 4.54, where text after a visual segment goes on at the largest
position so far, on any axis, plus one. transformers 5.17 goes on at the larger side of the grid instead, which is
another number for long videos; published checkpoints want the former.
"""

from __future__ import annotations

import numpy as np

from .engine import Array

Grid = tuple[int, int, int]


def text_positions(start: int, count: int) -> Array:
    """Positions of `count` text tokens from `start` on: the same on all axes, int64 [3, count]."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count))


def visual_positions(start: int, grid: Grid, merge: int, step: float, first: int = 0) -> Array:
    """Positions of a visual segment that starts at `start`, int64 [3, t * h/merge * w/merge].

    `grid` is (temporal grids, height, width) in patches, `step` the positions between temporal grids (0 for images),
    `first` the index of the first temporal grid where the segment comes in pieces.
    """
    grids, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    # In float32 and then cut, as the original: `range * seconds * tokens_per_second` to long.
    times = (np.arange(first, first + grids) * np.float32(step)).astype(np.int64)
    axes = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
    return start + np.stack([axis.ravel() for axis in axes])


def position_after(start: int, grid: Grid, merge: int, step: float) -> int:
    """The position of the first text token after a visual segment: the largest on any axis, plus one."""
    last_time = int(np.float32(grid[0] - 1) * np.float32(step))
    return start + max(last_time, grid[1] // merge - 1, grid[2] // merge - 1) + 1
