"""Optimization profiles: for which sizes of its free axes each graph is compiled.

    decoder        chunks of a prompt, and single steps (its second profile, tuned for one token)
    vision         batches of a video's small grids, and one large grid
    embed          a question's text, and single tokens
    head, reflect  the last row, or a few

Weights are shared between profiles: TensorRT-RTX 1.7 stores them twice where a profile fixes one token, and once where
it only prefers one, so single steps may be longer than they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...runtime import contract
from ...runtime.contract import Port
from ...runtime.manifest import ModelFacts
from ...runtime.plans import AxisRange

Profile = dict[str, AxisRange]

FEW_ROWS = 8


@dataclass(frozen=True)
class Limits:
    """The largest sizes that plans are built for."""

    capacity: int
    """Rows of the KV cache; cost and memory follow it."""
    chunk_tokens: int = 1024
    """Tokens of one decoder run in prefill."""
    patches: int = 16_384
    """Patches of one temporal grid: 3.2 megapixels at 14 x 14."""
    batch_patches: int = 1024
    """Patches of a grid that is small enough to be encoded in a batch: a video frame of 448 x 448."""
    batch_grids: int = 8
    """Grids of such a batch."""


def profiles(graph: str, model: ModelFacts, limits: Limits) -> tuple[Profile, ...]:
    """The profiles of a graph, in the order in which a run looks for the first that takes its shapes."""
    if graph == contract.DECODER:
        chunk = min(limits.chunk_tokens, limits.capacity)
        return {"tokens": (1, 1, chunk)}, {"tokens": (1, chunk, chunk)}
    if graph == contract.VISION:
        batch = min(limits.batch_patches, limits.patches)
        single = _vision(model, (1, 1, 1), limits.patches)
        return _vision(model, (1, limits.batch_grids, limits.batch_grids), batch), single
    if graph == contract.EMBED:
        return ({"tokens": (1, 1, limits.capacity)},)
    return ({"tokens": (1, 1, FEW_ROWS)},)


def _vision(model: ModelFacts, grids: AxisRange, patches: int) -> Profile:
    group = model.merge**2
    largest = max(group, patches // group * group)
    return {
        "grids": grids,
        "patches": (group, largest, largest),
        "windows": (1, _windows(model, largest), _most_windows(model, largest)),
    }


def _windows(model: ModelFacts, patches: int) -> int:
    """Windows of a square grid."""
    side = math.sqrt(patches)
    return max(1, math.ceil(side / model.window) ** 2)


def _most_windows(model: ModelFacts, patches: int) -> int:
    """Windows of the least favourable grid whose sides are a window or longer.

    A grid of h x w patches has at most (h + s - 1) * (w + s - 1) / s^2 windows of side s, which for fixed h * w is
    largest where h = s. Thinner grids, down to two patches, can have twice that: they are refused when they come.
    """
    side = model.window
    longest = -(-patches // side)
    return max(1, -(-(2 * side - 1) * (longest + side - 1) // side**2))


def shapes(port: Port, profile: Profile, capacity: int) -> tuple[tuple[int, ...], ...]:
    """Smallest, likeliest and largest shape of an input."""
    fixed = Port(port.name, with_capacity(port, capacity), port.dtype)
    return tuple(
        tuple(profile[axis][which] if isinstance(axis, str) else axis for axis in fixed.axes) for which in range(3)
    )


def with_capacity(port: Port, capacity: int) -> tuple[int | str, ...]:
    """A port's axes with the cache's rows as a number, which TensorRT asks for."""
    return tuple(capacity if axis == "capacity" else axis for axis in port.axes)
