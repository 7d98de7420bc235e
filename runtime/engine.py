"""What the runtime asks of an engine library: buffers on its device, and graphs that run from buffers into buffers.

`runtime/engines/` implements this, a file for each library and device. Nothing else in the runtime knows which runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .contract import FLOAT

Array = NDArray[Any]


class Buffer(Protocol):
    """Memory on the engine's device, seen as an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""

    def view(self, shape: Sequence[int], offset: int = 0) -> Buffer:
        """The same memory from element `offset` on, seen as `shape`; no copy."""


class Graph(Protocol):
    """One graph of the bundle, ready to run."""

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Read every input, fill every output; they may share a buffer where the contract says so.

        It may return before that is done: what is run, copied or downloaded later sees it done (`Engine.wait`).
        """


class Engine(Protocol):
    """A device with the bundle's graphs loaded."""

    device: str
    activation: np.dtype[Any]
    """Element type of every "float" port (two opaque bytes where that is bfloat16)."""
    chunk_tokens: int
    """Tokens of one decoder run in prefill: enough for large matrix products, few enough for small activations."""
    vision_patches: int
    """Patches of one vision run (of whole grids, at least one), chosen likewise."""
    cache_capacities: tuple[int, ...]
    """Rows that a KV cache may have, ascending; empty where any number will do."""
    text_apart: bool
    """Whether text must not share a run with visual tokens: an engine that watches its inputs tells kinds by run."""

    def graph(self, name: str) -> Graph:
        """A graph by its name in the contract."""

    def empty(self, shape: Sequence[int], dtype: str = FLOAT) -> Buffer:
        """An uninitialised buffer of a type of the contract. Raises ResourceError."""

    def zeros(self, shape: Sequence[int], dtype: str = FLOAT) -> Buffer:
        """One of zeros, for caches: attention multiplies what is behind their filled rows by 0, NaN would stay."""

    def upload(self, array: Array) -> Buffer:
        """The array on the device."""

    def download(self, buffer: Buffer) -> Array:
        """The buffer as float32 (or its own type, where that is not a float) on the host."""

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy a [1, H, R, d] buffer over the first R rows of a [1, H, C, d] one, C >= R."""

    def wait(self) -> None:
        """Until everything that was run is done."""

    def free_bytes(self) -> int:
        """Memory that is free on the device now."""
