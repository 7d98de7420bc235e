"""The KV cache: one pair of buffers a layer, written in place, and the number of rows that hold something."""

from __future__ import annotations

from .contract import cache_names, cache_output
from .engine import Buffer, Engine
from .errors import LimitError
from .manifest import ModelFacts
from .memory import check_cache_fits

BUCKET = 256
"""Capacity comes in steps of so many rows, so that a few more tokens do not mean a new buffer."""


class KVCache:
    """Keys and values of every token so far; capacity grows in buckets, `length` moves freely below it."""

    def __init__(self, engine: Engine, model: ModelFacts, capacity: int) -> None:
        self._engine, self._model = engine, model
        self.length = 0
        self.capacity = 0
        self._buffers: dict[str, Buffer] = {}
        self._outputs: dict[str, Buffer] = {}
        self.reserve(capacity)

    @property
    def inputs(self) -> dict[str, Buffer]:
        """The buffers by the decoder's input names."""
        return self._buffers

    @property
    def outputs(self) -> dict[str, Buffer]:
        """The same buffers by the decoder's output names: updated in place."""
        return self._outputs

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more rows, keeping those that are filled. Raises LimitError and ResourceError."""
        wanted, limit = self.length + tokens, self._model.max_context
        if wanted > limit:
            raise LimitError(
                f"the context holds {limit} tokens and is full; pass a smaller --max-new-tokens, "
                "or export with a larger --max-context"
            )
        if wanted <= self.capacity:
            return
        capacity = self._rows(wanted)
        check_cache_fits(self._model, capacity, self._engine.activation.itemsize, self._engine.free_bytes())
        shape = (1, self._model.kv_heads, capacity, self._model.head_dim)
        for name in cache_names(self._model.layers):
            buffer = self._engine.zeros(shape, self._model.cache_dtype)
            if self.length:
                self._engine.copy(self._buffers[name], buffer)
            self._buffers[name] = buffer
        self._outputs = {cache_output(name): buffer for name, buffer in self._buffers.items()}
        self.capacity = capacity

    def _rows(self, wanted: int) -> int:
        """The next capacity with room for `wanted` rows: a bucket, or one that the engine was built for."""
        built = self._engine.cache_capacities
        if not built:
            return -(-wanted // BUCKET) * BUCKET
        roomy = [rows for rows in built if rows >= wanted]
        if not roomy:
            raise LimitError(
                f"the plans hold at most {built[-1]} tokens, {wanted} are wanted; use a smaller --max-frames or "
                f"--max-pixels, or run `reflectrt build` with --capacity {wanted}"
            )
        return roomy[0]
