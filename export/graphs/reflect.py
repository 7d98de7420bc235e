"""The reflect graph: what a fed-back hidden state goes through before it is the next input embedding.

VisReflect feeds the hidden state back as it is, and then there is no such graph. Other latent-reasoning checkpoints
train a projector there: one linear layer, or two with GELU between.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ..facts import ReflectionFacts, TextFacts
from .layers import Array, Linear


class Reflect(nn.Module):
    """The checkpoint's `reflection_head`, linear or MLP."""

    prefix = ""

    def __init__(self, text: TextFacts, reflection: ReflectionFacts) -> None:
        super().__init__()
        hidden, inner, bias = text.hidden, reflection.head_width, reflection.head_bias
        self.reflection_head: nn.Module
        if reflection.head == "linear":
            self.reflection_head = Linear(hidden, hidden, bias)
        else:
            # Indices as in the checkpoint, where 1 is the GELU between them.
            self.reflection_head = nn.ModuleDict({"0": Linear(hidden, inner, bias), "2": Linear(inner, hidden, bias)})

    def constants(self) -> dict[str, Array]:
        """No buffers."""
        return {}

    def forward(self, hidden_post_norm: Tensor) -> Tensor:
        head = self.reflection_head
        if isinstance(head, nn.ModuleDict):
            return head["2"](functional.gelu(head["0"](hidden_post_norm)))  # type: ignore[no-any-return]
        return head(hidden_post_norm)  # type: ignore[no-any-return]
