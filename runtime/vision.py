"""Run the vision encoder: patches in, embeddings out; which patches attend together in its windowed blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from . import contract
from .engine import Array, Buffer, Engine
from .manifest import ModelFacts
from .positions import Grid

NO_PATCH = -1


def encode(engine: Engine, model: ModelFacts, patches: Array, grid: Grid) -> Buffer:
    """Patches uint8 [G, N, values] of a grid (G, height, width) -> embeddings [G, N / merge^2, D] on the device."""
    layout = vision_layout(grid[1], grid[2], model.merge, model.window)
    embeddings = engine.empty((grid[0], patches.shape[1] // model.merge**2, model.hidden))
    inputs = {
        "patches": patches,
        "patch_positions": layout.positions,
        "windows": layout.windows,
        "window_slots": layout.slots,
    }
    uploaded = {name: engine.upload(array) for name, array in inputs.items()}
    engine.graph(contract.VISION).run(uploaded, {"embeddings": embeddings})
    return embeddings


@dataclass(frozen=True)
class VisionLayout:
    """The vision graph's index inputs for one grid size; N = height * width patches, in merge order.

    `positions` int64 [N, 2]: row and column. `windows` int64 [W, S]: the patches of each window, -1 where it is cut.
    `slots` int64 [N]: where each patch stands in the flat `windows`.
    """

    positions: Array
    windows: Array
    slots: Array


@lru_cache(maxsize=64)
def vision_layout(height: int, width: int, merge: int, window: int) -> VisionLayout:
    """Layout of a grid of height x width patches; `window` is a window's side in patches, `merge` a merge group's."""
    rows, columns = _merge_order(height, width, merge)
    across = -(-width // window)
    number = (rows // window) * across + columns // window
    inside = (rows % window) * window + columns % window
    slots = number * window**2 + inside
    windows = np.full((-(-height // window) * across, window**2), NO_PATCH, dtype=np.int64)
    windows.reshape(-1)[slots] = np.arange(height * width)
    return VisionLayout(np.stack([rows, columns], axis=1), windows, slots)


def _merge_order(height: int, width: int, merge: int) -> tuple[Array, Array]:
    """Row and column of each patch, int64 [N]: merge groups in raster order, raster order inside each."""
    rows, columns = np.meshgrid(np.arange(height, dtype=np.int64), np.arange(width, dtype=np.int64), indexing="ij")

    def ordered(axis: Array) -> Array:
        grouped = axis.reshape(height // merge, merge, width // merge, merge)
        return grouped.transpose(0, 2, 1, 3).ravel()

    return ordered(rows), ordered(columns)
