"""What was seen of activations: the largest magnitude of every channel, exactly, and a sample of rows, by their source.

Text embeddings, visual embeddings and fed-back hidden states are different distributions, and there are a thousand
visual rows for each reflection step: each source has a reservoir of its own, so that none drowns another.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sources import Kind

Array = NDArray[Any]

ROWS = 512
"""Rows kept of each source: half a million numbers of a tensor of 1,000 channels, 50 of them beyond 99.99 %."""


@dataclass
class Reservoir:
    """A uniform sample of the rows of one graph and source (the `ROWS` smallest of random keys), for all its tensors.

    Rows of different tensors belong to the same tokens.
    """

    keys: Array = field(default_factory=lambda: np.empty(0))
    rows: dict[str, Array] = field(default_factory=dict)
    """[kept, channels] by tensor."""
    seen: int = 0

    def draw(self, count: int, random: np.random.Generator) -> tuple[Array, Array]:
        """Of `count` new rows the indices that enter, and their keys. At least one index, for the graph's sake."""
        keys = random.random(count)
        worst = self.keys[-1] if len(self.keys) == ROWS else 1.0
        chosen = np.flatnonzero(keys < worst)
        if len(chosen) > ROWS:
            chosen = np.sort(chosen[np.argsort(keys[chosen])[:ROWS]])
        chosen = chosen if len(chosen) else np.zeros(1, np.int64)
        return chosen.astype(np.int64), keys[chosen]

    def add(self, count: int, keys: Array, rows: dict[str, Array]) -> None:
        """Take in drawn rows, push out those with larger keys."""
        self.seen += count
        together = np.concatenate([self.keys, keys])
        order = np.argsort(together, kind="stable")[:ROWS]
        self.keys = together[order]
        for name, new in rows.items():
            self.rows[name] = np.concatenate([self.rows[name], new])[order] if name in self.rows else new[order]


@dataclass
class Observations:
    """Everything seen so far."""

    reservoirs: dict[tuple[str, Kind], Reservoir] = field(default_factory=dict)
    maxima: dict[str, Array] = field(default_factory=dict)
    """[channels] by tensor, over all sources; caches as [kv_heads * head_dim]."""

    def reservoir(self, graph: str, kind: Kind) -> Reservoir:
        """The sample of one graph and source."""
        return self.reservoirs.setdefault((graph, kind), Reservoir())

    def widen(self, name: str, largest: Array) -> None:
        """A tensor's channels have reached these magnitudes."""
        known = self.maxima.get(name)
        self.maxima[name] = largest.copy() if known is None else np.maximum(known, largest)

    def rows(self, name: str) -> dict[Kind, Array]:
        """The sampled rows of a tensor by source."""
        return {kind: found.rows[name] for (_, kind), found in self.reservoirs.items() if name in found.rows}

    def seen(self) -> dict[str, int]:
        """Rows that went through each graph, by `graph from source`."""
        return {f"{graph} from {kind}": found.seen for (graph, kind), found in self.reservoirs.items()}


def save(observations: Observations, file: Path, **more: Array) -> None:
    """Write everything to one .npz file, whole or not at all."""
    arrays = {f"max|{name}": largest for name, largest in observations.maxima.items()}
    for (graph, kind), found in observations.reservoirs.items():
        arrays[f"keys|{graph}|{kind}"] = found.keys
        arrays[f"seen|{graph}|{kind}"] = np.array(found.seen)
        arrays |= {f"rows|{graph}|{kind}|{name}": rows for name, rows in found.rows.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **(arrays | more))
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        stream.write(buffer.getbuffer())
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def load(file: Path) -> tuple[Observations, dict[str, Array]]:
    """What `save` wrote, and what was saved beside it."""
    observations, more = Observations(), {}
    with np.load(file, allow_pickle=False) as arrays:
        for name in arrays.files:
            part, *rest = name.split("|")
            if part == "max":
                observations.maxima[rest[0]] = arrays[name]
            elif part in ("keys", "seen", "rows"):
                reservoir = observations.reservoir(rest[0], rest[1])
                _restore(reservoir, part, rest[2:], arrays[name])
            else:
                more[name] = arrays[name]
    return observations, more


def _restore(reservoir: Reservoir, part: str, name: list[str], array: Array) -> None:
    if part == "keys":
        reservoir.keys = array
    elif part == "seen":
        reservoir.seen = int(array)
    else:
        reservoir.rows[name[0]] = array
