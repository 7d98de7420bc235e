"""Labels for the vision pre-task: what each merged token of a scene shows.

Words alone teach a vision encoder slowly; naming what lies under every token teaches it in a minute. The
heads that read this are thrown away after stage 0.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..bench.needle.film import VideoScene
from ..bench.needle.item import Box
from ..bench.needle.palette import COLOURS, SHAPES, Thing
from ..bench.needle.picture import WHERE, ImageScene

CELL = 28  # px of a merged token
UNKNOWN = 255
PLACES = 80  # most merged tokens along an axis: 2240 px, or 160 frames
# Classes of each head; 0 is "nothing there". The last four describe the other thing of a pair.
CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, 11, len(SHAPES) + 1, len(COLOURS) + 1, 11, 2 * len(WHERE) + 1)
HEADS = len(CLASSES)
COLOUR_NUMBER = {name: number for number, name in enumerate(COLOURS, 1)}
SHAPE_NUMBER = {name: number for number, name in enumerate(SHAPES, 1)}

Labels = NDArray[np.uint8]


class DenseHeads(nn.Module):
    """One linear reading of merged embeddings [..., D] for each head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, sum(CLASSES))

    def forward(self, merged: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the heads; labels uint8 [..., HEADS]. Things and background weigh the same."""
        logits = self.read(merged).flatten(0, -2).float().split(CLASSES, dim=-1)
        wanted = labels.flatten(0, -2).long()
        shape = wanted[:, 0]
        thing = ((shape > 0) & (shape != UNKNOWN)).float()
        empty = (shape == 0).float()
        weight = thing / thing.sum().clamp(min=1)
        losses = [_weighted(part, wanted[:, head], weight) for head, part in enumerate(logits)]
        losses.append(_weighted(logits[0], shape, empty / empty.sum().clamp(min=1)))
        return torch.stack(losses).mean()


def _weighted(logits: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, wanted, ignore_index=UNKNOWN, reduction="none")
    return (losses * weight).sum()


def image_labels(scene: ImageScene) -> Labels:
    """uint8 [1, rows, columns, HEADS] for a picture."""
    labels = np.zeros((scene.size[1] // CELL, scene.size[0] // CELL, HEADS), np.uint8)
    rows = [[*_own(placed.thing), 0, 0, 0, 0] for placed in scene.things]
    for pair in scene.pairs:
        where = WHERE.index(pair.where)
        anchor, other = scene.things[pair.anchor].thing, scene.things[pair.other].thing
        rows[pair.anchor][3:] = [*_own(other), where + 1]
        rows[pair.other][3:] = [*_own(anchor), where + 1 + len(WHERE)]
    _fill(labels, zip((placed.box for placed in scene.things), rows, strict=True))
    return labels[None]


def video_labels(scene: VideoScene) -> Labels:
    """uint8 [pairs of frames, rows, columns, HEADS]; the heads about neighbours are unknown."""
    shape = scene.size[1] // CELL, scene.size[0] // CELL, HEADS
    labels = np.zeros((scene.count // 2, *shape), np.uint8)
    labels[..., 3:] = UNKNOWN
    for number, step in enumerate(labels):
        shown = [(d.at(2 * number, scene.size), [UNKNOWN] * HEADS) for d in scene.drifters]
        shown += [
            (event.box, _own(event.thing) + [UNKNOWN] * 4)
            for event in scene.events
            if event.span[0] < 2 * number + 2 and event.span[1] > 2 * number
        ]
        _fill(step, shown)
    return labels


def _own(thing: Thing) -> list[int]:
    digit = 0 if thing.digit is None else thing.digit + 1
    return [SHAPE_NUMBER[thing.shape], COLOUR_NUMBER[thing.colour], digit]


def _fill(labels: Labels, things: Iterable[tuple[Box, list[int]]]) -> None:
    """Label tokens that a thing covers by a quarter or more; those it only touches are unknown."""
    for (x0, y0, x1, y1), row in things:
        for r in range(y0 // CELL, min(-(-y1 // CELL), labels.shape[0])):
            for c in range(x0 // CELL, min(-(-x1 // CELL), labels.shape[1])):
                high = min(y1, (r + 1) * CELL) - max(y0, r * CELL)
                wide = min(x1, (c + 1) * CELL) - max(x0, c * CELL)
                labels[r, c] = row if 4 * high * wide >= CELL * CELL else UNKNOWN


class PlaceHeads(nn.Module):
    """Linear readings of where a visual token lies: temporal grid row, row and column.

    Rotary positions are relative, so a token's own place is nowhere in it until a layer works it out from the distance
    to the prompt's first tokens. Without being asked for it, 1,300 steps did not teach that (docs/training.md).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, 3 * PLACES)

    def forward(self, hidden: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Mean cross-entropy over the axes; hidden [B, t * rows * columns, D] of a grid (t, rows, columns)."""
        axes = torch.meshgrid(*(torch.arange(size, device=hidden.device) for size in grid), indexing="ij")
        wanted = torch.stack([axis.flatten() for axis in axes]).expand(len(hidden), -1, -1)
        logits = self.read(hidden).unflatten(-1, (3, PLACES)).float()
        return F.cross_entropy(logits.permute(0, 3, 2, 1), wanted)
