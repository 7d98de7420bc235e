"""The embed graph: token ids in, embeddings out."""

from __future__ import annotations

from torch import Tensor, nn

from ..facts import TextFacts
from .layers import Array


class Embed(nn.Module):
    """A row of the token table for each id."""

    prefix = "model.language_model."

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(facts.vocab, facts.hidden)

    def constants(self) -> dict[str, Array]:
        """No buffers."""
        return {}

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.embed_tokens(token_ids)  # type: ignore[no-any-return]
