"""A decoder to time, ours from a bundle or PyTorch's from the checkpoint: prefill a prompt, take a reflection step."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import DynamicCache

from ..runtime.bundle import open_bundle
from ..runtime.engine import Array
from ..runtime.engines.onnxruntime import OrtCpuEngine
from ..runtime.stream import Mark, Stream
from .torch_loop import TorchLoop


class Subject(Protocol):
    """Something that decodes embeddings [1, T, D], float32."""

    name: str

    def prefill(self, embeddings: Array) -> None:
        """Start anew with these embeddings."""

    def fill(self, embeddings: Array, context: int) -> None:
        """Start anew and feed the embeddings until `context` tokens are in the cache."""

    def step(self) -> None:
        """Feed the last hidden state back as one token, and forget the token again: the context stays what it was."""


class OurDecoder:
    """A bundle's decoder, as `Session` runs it: in chunks, over the cache in place."""

    def __init__(self, name: str, bundle: Path, threads: int, capacity: int) -> None:
        opened = open_bundle(bundle)
        self.name = name
        self.stream = Stream(OrtCpuEngine(opened, threads), opened.manifest, capacity)
        self.start = self.mark = self.stream.mark()
        self.hidden = self.stream.engine.empty((1, 1, opened.manifest.model.hidden))

    def prefill(self, embeddings: Array) -> None:
        """Embeddings are fed as a medium's are: one temporal grid of a row of tokens."""
        self.stream.roll_back(self.start)
        self._feed(embeddings)

    def fill(self, embeddings: Array, context: int) -> None:
        """Feed them over and over."""
        self.stream.roll_back(self.start)
        while (room := context - self.stream.cache.length) > 0:
            self._feed(embeddings[:, :room])
        self.mark = Mark(self.stream.cache.length, self.stream.position)

    def step(self) -> None:
        """`Stream.feed_hidden`, rolled back."""
        self.hidden = self.stream.feed_hidden(self.hidden)
        self.stream.roll_back(self.mark)

    def _feed(self, embeddings: Array) -> None:
        merge = self.stream.manifest.model.merge
        grid = (1, merge, merge * embeddings.shape[1])
        self.stream.feed_visual(self.stream.engine.upload(embeddings), grid, 1.0, 0)
        self.stream.end_visual(grid, 1.0)
        self.hidden = self.stream.engine.upload(embeddings[:, -1:])


class TorchDecoder:
    """transformers' decoder with fused attention and its growing cache."""

    def __init__(self, name: str, checkpoint: Path, dtype: str, threads: int) -> None:
        loop = TorchLoop(checkpoint, dtype, threads)
        self.name, self.dtype, self.model = name, loop.dtype, loop.model.model.language_model
        self.cache, self.hidden, self.context = DynamicCache(), torch.empty(0), 0

    def prefill(self, embeddings: Array) -> None:
        """The whole prompt in one forward pass."""
        self.cache = DynamicCache()
        self._feed(torch.from_numpy(np.ascontiguousarray(embeddings)).to(self.dtype))

    def fill(self, embeddings: Array, context: int) -> None:
        """Feed them over and over."""
        self.prefill(embeddings)
        while (room := context - self.cache.get_seq_length()) > 0:
            self._feed(torch.from_numpy(np.ascontiguousarray(embeddings[:, :room])).to(self.dtype))
        self.context = context

    def step(self) -> None:
        """One row, cropped from the cache afterwards."""
        self._feed(self.hidden)
        self.cache.crop(self.context)

    @torch.no_grad()
    def _feed(self, embeddings: torch.Tensor) -> None:
        past = self.cache.get_seq_length()
        positions = torch.arange(past, past + embeddings.shape[1]).expand(3, 1, -1)
        output = self.model(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        self.hidden = output.last_hidden_state[:, -1:]
