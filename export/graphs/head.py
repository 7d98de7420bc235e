"""The head graph: hidden state after the final norm in, logits over the vocabulary out.

Logits are never rounded to bfloat16: its 8 bits alone, all else in float32, turned 1.3 % of the letters of 2,065 needle
questions (`assets/reference`), more than int8 weights do. So a bfloat16 graph multiplies here in float16, which costs
the same; normed states and vocabulary weights are well inside its range.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx import ops

from ..facts import TextFacts
from .layers import Array


def table_type(activation: torch.dtype) -> torch.dtype:
    """Element type of the vocabulary's weights where activations have this one."""
    return torch.float16 if activation == torch.bfloat16 else activation


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
    """Qwen2.5-VL's `lm_head`; logits are float32."""

    prefix = ""

    def __init__(self, facts: TextFacts, activation: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight_dtype = table_type(activation)
        self.lm_head = VocabularyLinear(facts)

    def constants(self) -> dict[str, Array]:
        """No buffers."""
        return {}

    def forward(self, hidden_post_norm: Tensor) -> Tensor:
        rows = hidden_post_norm.flatten(0, 1).to(self.weight_dtype)
        return self.lm_head(rows).unsqueeze(0).float()  # type: ignore[no-any-return]
