"""The embed graph: token ids in, embeddings out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..facts import TextFacts
from .head import table_type
from .layers import Array


class Embed(nn.Module):
    """A row of the token table for each id. A table that is the head's too has the head's type, to be stored once."""

    prefix = "model.language_model."

    def __init__(self, facts: TextFacts, activation: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.activation, self.weight_dtype = activation, table_type(activation) if facts.tied else activation
        self.embed_tokens = nn.Embedding(facts.vocab, facts.hidden)

    def constants(self) -> dict[str, Array]:
        """No buffers."""
        return {}

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.embed_tokens(token_ids).to(self.activation)  # type: ignore[no-any-return]
