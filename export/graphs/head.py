"""The head graph: hidden state after the final norm in, logits over the vocabulary out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx import ops

from ..facts import TextFacts
from .layers import Array


class VocabularyLinear(nn.Module):
    """The one matrix kept as the checkpoint has it, [vocab, hidden] (ONNX `Gemm` with transB).

    A tied head is then byte for byte the embedding table, and the bundle stores it once.
    """

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(facts.vocab, facts.hidden))

    def forward(self, rows: Tensor) -> Tensor:
        shape = (rows.shape[0], self.weight.shape[0])
        return ops.symbolic("Gemm", (rows, self.weight), {"transB": 1}, dtype=rows.dtype, shape=shape, version=13)


class Head(nn.Module):
    """Qwen2.5-VL's `lm_head`."""

    prefix = ""

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.lm_head = VocabularyLinear(facts)

    def constants(self) -> dict[str, Array]:
        """No buffers."""
        return {}

    def forward(self, hidden_post_norm: Tensor) -> Tensor:
        return self.lm_head(hidden_post_norm.flatten(0, 1)).unsqueeze(0)  # type: ignore[no-any-return]
