"""The stream of embeddings: whoever made them, they go into the decoder in order, and hidden states come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import contract
from .cache import KVCache
from .engine import Array, Buffer, Engine
from .manifest import Manifest
from .positions import Grid, position_after, text_positions, visual_positions


@dataclass(frozen=True)
class Mark:
    """A place in the stream to come back to: rows of the KV cache, the next position, and text held back."""

    length: int
    position: int
    held: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """All that stands before this place, fed or held."""
        return self.length + len(self.held)


class Stream:
    """One conversation's decoder state: the KV cache, the next position, and how often the decoder ran."""

    def __init__(self, engine: Engine, manifest: Manifest, capacity: int) -> None:
        self.engine, self.manifest = engine, manifest
        self.cache = KVCache(engine, manifest.model, capacity)
        self.position = 0
        self.runs = 0
        self._held: tuple[int, ...] = ()

    def mark(self) -> Mark:
        """Where the stream is now."""
        return Mark(self.cache.length, self.position, self._held)

    def roll_back(self, mark: Mark) -> None:
        """Forget everything fed since `mark`."""
        self.cache.length, self.position, self._held = mark.length, mark.position, mark.held

    def hold(self, ids: Sequence[int]) -> None:
        """Text that goes in with what is fed next: a run of its own would read all weights for a few tokens."""
        self._held = (*self._held, *ids)
        if self.engine.text_apart:
            self._feed(*self._release())

    def feed_tokens(self, ids: Sequence[int]) -> Buffer:
        """Feed text in as few runs as possible; hidden state [1, 1, D] after the last token, post norm."""
        self._held = (*self._held, *ids)
        return self._feed(*self._release())

    def feed_hidden(self, hidden: Buffer) -> Buffer:
        """Feed a hidden state [1, 1, D] back as the next input embedding; the hidden state after it."""
        text, before = self._release()
        hidden = self._feed([*text, self._reflect(hidden)], [*before, text_positions(self.position, 1)])
        self.position += 1
        return hidden

    def feed_visual(self, embeddings: Buffer, grid: Grid, step: float, first: int) -> None:
        """Feed temporal grids `first`... of a segment: embeddings [G, N, D] of a grid (G, height, width).

        `self.position` stays at the segment's start until `end_visual`.
        """
        grids, tokens, hidden = embeddings.shape
        text, before = self._release()
        positions = visual_positions(self.position, grid, self.manifest.model.merge, step, first)
        self._feed([*text, embeddings.view((1, grids * tokens, hidden))], [*before, positions])

    def end_visual(self, grid: Grid, step: float) -> None:
        """The visual segment of this whole grid is complete: text goes on after it."""
        self.position = position_after(self.position, grid, self.manifest.model.merge, step)

    def logits(self, hidden: Buffer) -> Array:
        """Logits float32 [V] of the token after a hidden state [1, 1, D]."""
        logits = self.engine.empty((1, 1, self.manifest.model.vocab), self.manifest.model.logits_dtype)
        self.engine.graph(contract.HEAD).run({"hidden_post_norm": hidden}, {"logits": logits})
        return self.engine.download(logits).reshape(-1)

    def _release(self) -> tuple[list[Buffer], list[Array]]:
        """Held text as embeddings [1, T, D] and positions [3, T], in lists that are empty where none is held."""
        if not self._held:
            return [], []
        ids, self._held = self._held, ()
        positions = text_positions(self.position, len(ids))
        self.position += len(ids)
        return [self._embed(ids)], [positions]

    def _embed(self, ids: Sequence[int]) -> Buffer:
        embeddings = self.engine.empty((1, len(ids), self.manifest.model.hidden))
        tokens = self.engine.upload(np.array([ids], dtype=np.int64))
        self.engine.graph(contract.EMBED).run({"token_ids": tokens}, {"embeddings": embeddings})
        return embeddings

    def _reflect(self, hidden: Buffer) -> Buffer:
        reflection = self.manifest.reflection
        if reflection is None or reflection.head == "identity":
            return hidden
        embeddings = self.engine.empty(hidden.shape)
        self.engine.graph(contract.REFLECT).run({"hidden_post_norm": hidden}, {"embeddings": embeddings})
        return embeddings

    def _feed(self, parts: Sequence[Buffer], places: Sequence[Array]) -> Buffer:
        """Run the decoder over parts [1, T, D] in chunks; the last hidden state [1, 1, D]."""
        embeddings, positions = self._joined(parts), np.concatenate(places, axis=1)
        tokens, width = embeddings.shape[1:]
        self.cache.reserve(tokens)
        for start in range(0, tokens, self.engine.chunk_tokens):
            count = min(self.engine.chunk_tokens, tokens - start)
            chunk = embeddings.view((1, count, width), start * width)
            hidden = self._advance(chunk, positions[:, start : start + count])
        return hidden.view((1, 1, width), (count - 1) * width)

    def _joined(self, parts: Sequence[Buffer]) -> Buffer:
        """Parts [1, T, D] one behind the other."""
        if len(parts) == 1:
            return parts[0]
        counts, width = [part.shape[1] for part in parts], parts[0].shape[2]
        whole, start = self.engine.empty((1, sum(counts), width)), 0
        for part, count in zip(parts, counts, strict=True):
            rows = (1, 1, count, width)
            self.engine.copy(part.view(rows), whole.view(rows, start * width))
            start += count
        return whole

    def _advance(self, embeddings: Buffer, positions: Array) -> Buffer:
        """One decoder run over [1, T, D]: hidden states [1, T, D]; the cache is T rows longer."""
        hidden = self.engine.empty(embeddings.shape)
        inputs = {
            "embeddings": embeddings,
            "positions": self.engine.upload(positions),
            "past_length": self.engine.upload(np.array([self.cache.length], dtype=np.int64)),
        }
        outputs = {"hidden_post_norm": hidden, **self.cache.outputs}
        self.engine.graph(contract.DECODER).run({**inputs, **self.cache.inputs}, outputs)
        self.cache.length += embeddings.shape[1]
        self.runs += 1
        return hidden
