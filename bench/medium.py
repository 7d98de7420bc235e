"""An image or video as arrays, for checks and timings; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Medium:
    """An image or video as the vision encoder takes it."""

    kind: Literal["image", "video"]
    patches: NDArray[np.uint8]
    """[G, N, 1176]: temporal grids, patches in merge order, values channel-major; not yet normalised."""
    grid: tuple[int, int, int]
    """Temporal grids, height and width in patches: G, and two factors of N."""
    seconds_per_grid: float = 1.0
