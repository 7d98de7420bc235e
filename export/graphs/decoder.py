"""The decoder graph: embeddings in, hidden state after the final norm out, KV cache updated on the way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..facts import TextFacts
from .layers import (
    Array,
    Linear,
    RMSNorm,
    SwiGLU,
    attention,
    inverse_frequencies,
    join_heads,
    rotary,
    scatter_into_cache,
    split_heads,
)

Cache = tuple[Tensor, Tensor]


class Step:
    """What all layers of one run share: angles [1, T, head_dim/2], mask [T, capacity], cache rows filled [1]."""

    def __init__(self, cos: Tensor, sin: Tensor, mask: Tensor, past_length: Tensor) -> None:
        self.cos, self.sin, self.mask, self.past_length = cos, sin, mask, past_length


class SelfAttention(nn.Module):
    """Grouped-query attention over the cache."""

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.facts = facts
        query, key = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        self.q_proj = Linear(facts.hidden, query, bias=True)
        self.k_proj = Linear(facts.hidden, key, bias=True)
        self.v_proj = Linear(facts.hidden, key, bias=True)
        self.o_proj = Linear(query, facts.hidden, bias=False)

    def forward(self, x: Tensor, step: Step, cache: Cache) -> tuple[Tensor, Cache]:
        facts = self.facts
        query = rotary(split_heads(self.q_proj(x), facts.heads, facts.head_dim), step.cos, step.sin)
        key = rotary(split_heads(self.k_proj(x), facts.kv_heads, facts.head_dim), step.cos, step.sin)
        value = split_heads(self.v_proj(x), facts.kv_heads, facts.head_dim)
        keys = scatter_into_cache(cache[0], key, step.past_length)
        values = scatter_into_cache(cache[1], value, step.past_length)
        return self.o_proj(join_heads(attention(query, keys, values, step.mask))), (keys, values)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(facts.hidden, facts.rms_eps)
        self.self_attn = SelfAttention(facts)
        self.post_attention_layernorm = RMSNorm(facts.hidden, facts.rms_eps)
        self.mlp = SwiGLU(facts.hidden, facts.mlp, bias=False)

    def forward(self, x: Tensor, step: Step, cache: Cache) -> tuple[Tensor, Cache]:
        attended, cache = self.self_attn(self.input_layernorm(x), step, cache)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nn.Module):
    """Qwen2.5-VL's language model without embedding and head; see `runtime/contract.py` for inputs and outputs."""

    prefix = "model.language_model."
    inv_freq: Tensor
    mrope_axes: Tensor

    def __init__(self, facts: TextFacts) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(facts) for _ in range(facts.layers))
        self.norm = RMSNorm(facts.hidden, facts.rms_eps)
        self.facts = facts
        half = facts.head_dim // 2
        self.register_buffer("inv_freq", torch.empty(half, 1), persistent=False)
        self.register_buffer("mrope_axes", torch.empty(half, dtype=torch.int64), persistent=False)

    def constants(self) -> dict[str, Array]:
        """Values of the buffers: rotary frequencies and, for each, which of the three position axes turns it."""
        facts = self.facts
        return {
            "inv_freq": inverse_frequencies(facts.head_dim, facts.rope_theta)[:, None],
            "mrope_axes": np.repeat(np.arange(3, dtype=np.int64), facts.mrope_section),
        }

    def forward(
        self, embeddings: Tensor, positions: Tensor, past_length: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        angles = positions.index_select(0, self.mrope_axes).to(torch.float32) * self.inv_freq  # [head_dim/2, T]
        angles = angles.transpose(0, 1).unsqueeze(0)
        cos, sin = angles.cos().to(embeddings.dtype), angles.sin().to(embeddings.dtype)
        rows = torch.arange(caches[0].shape[2])
        newest = past_length + torch.arange(embeddings.shape[1])
        step = Step(cos, sin, rows.unsqueeze(0) <= newest.unsqueeze(1), past_length)
        x, updated = embeddings, []
        for layer, key, value in zip(self.layers, caches[::2], caches[1::2], strict=True):
            x, cache = layer(x, step, (key, value))
            updated += cache
        return self.norm(x), updated
