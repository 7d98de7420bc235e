"""Who made what the decoder reads: text and visual embeddings, or a hidden state that is fed back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..runtime import contract
from ..runtime.engine import Array, Buffer
from ..runtime.engines.onnxruntime import HostBuffer

Kind = Literal["pixels", "text", "visual", "hidden"]

MADE: dict[str, Kind] = {contract.VISION: "visual", contract.EMBED: "text"}
"""Graphs that make embeddings, and what kind."""


class Sources:
    """The newest embeddings of text and of visual tokens; graphs read them in place, so memory tells them apart."""

    def __init__(self) -> None:
        self._made: dict[Kind, Array] = {}

    def note(self, graph: str, outputs: Mapping[str, Buffer]) -> None:
        """A graph is about to fill these buffers."""
        if kind := MADE.get(graph):
            self._made[kind] = array_of(outputs["embeddings"])

    def of(self, graph: str, inputs: Mapping[str, Buffer]) -> Kind:
        """Where a graph's input comes from."""
        if graph == contract.VISION:
            return "pixels"
        if graph != contract.DECODER:
            return "hidden"
        embeddings = array_of(inputs["embeddings"])
        for kind, array in self._made.items():
            if np.may_share_memory(embeddings, array):
                return kind
        return "hidden"


def array_of(buffer: Buffer) -> Array:
    """A host buffer's array."""
    if not isinstance(buffer, HostBuffer):
        raise TypeError(f"a {type(buffer).__name__} is not in host memory")
    return buffer.array
