"""Media without files: patches that are already there, for checks and timings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .medium import Medium


@dataclass(frozen=True)
class SyntheticMedia:
    """A `Medium` as the runtime's sessions take media."""

    medium: Medium
    path: Path = Path("synthetic")
    warnings: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["image", "video"]:
        """Image or video."""
        return self.medium.kind

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal grids, height and width in patches."""
        return self.medium.grid

    @property
    def frames(self) -> int:
        """Two frames a temporal grid; one for an image."""
        return 1 if self.kind == "image" else 2 * self.grid[0]

    @property
    def visual_tokens(self) -> int:
        """Embeddings after merging 2 x 2 patches."""
        return self.grid[0] * self.grid[1] * self.grid[2] // 4

    @property
    def second_per_grid(self) -> float:
        """Seconds between temporal grids."""
        return self.medium.seconds_per_grid

    def patches(self, grids_per_chunk: int) -> Iterator[NDArray[np.uint8]]:
        """The patches [G, N, 1176], at most `grids_per_chunk` grids at a time."""
        for first in range(0, self.grid[0], grids_per_chunk):
            yield self.medium.patches[first : first + grids_per_chunk]


def random_medium(kind: str, grid: tuple[int, int, int], seed: int, patch_values: int = 1176) -> Medium:
    """Noise of a grid (temporal grids, height, width in patches), the same for the same seed."""
    grids, height, width = grid
    random = np.random.default_rng(seed)
    patches = random.integers(0, 256, (grids, height * width, patch_values), dtype=np.uint8)
    return Medium("video" if kind == "video" else "image", patches, grid)
