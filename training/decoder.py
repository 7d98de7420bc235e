"""The decoder in two parts: a prefix (system text and visual tokens) and branches (questions) that share it.

Branches see the prefix and themselves, never each other, so one encoded picture serves many questions and a
latent pass costs a branch, not a prefix. Values are those of transformers' decoder on each question alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .vision import rms_norm, rotate

KeysValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rotary:
    """Rotary tables [tokens, head] for a stretch of positions."""

    cos: Tensor
    sin: Tensor


def positions(lead: int, grid: tuple[int, int, int], tail: int, step: int) -> tuple[Tensor, Tensor]:
    """M-RoPE positions of prefix [3, lead + visual] and branch [3, tail].

    Visual tokens: time `step` a grid row (0 for images), height and width one a merged row and column, all from
    `lead` on. Text goes on at the greatest position on any axis plus one, as transformers did up to 4.54, which
    the authors used; transformers 5 goes on at max(height, width) and reuses positions in long videos.
    """
    t, h, w = grid
    axes = torch.meshgrid(torch.arange(t) * step, torch.arange(h), torch.arange(w), indexing="ij")
    visual = torch.stack([axis.flatten() for axis in axes]) + lead
    text = torch.arange(lead).expand(3, -1)
    branch = torch.arange(tail).expand(3, -1) + int(visual.max()) + 1
    return torch.cat([text, visual], dim=1), branch


def after_crop(branch: Tensor, start: int, rows: int, columns: int) -> Tensor:
    """Positions of a branch [3, T] whose tokens from `start` on are a second picture of rows x columns tokens."""
    end, first = start + rows * columns, int(branch[0, start])
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    moved = branch.clone()
    moved[:, start:end] = first + torch.stack([torch.zeros_like(down), down, across]).flatten(1)
    moved[:, end:] -= rows * columns - max(rows, columns)
    return moved


def rotary(language: Any, position: Tensor) -> Rotary:
    """Rotary tables of M-RoPE positions [3, T]."""
    device = language.rotary_emb.inv_freq.device
    cos, sin = language.rotary_emb(torch.zeros(1, device=device), position[:, None].to(device))
    return Rotary(cos[0], sin[0])


def branch_mask(prefix: int, branches: int, length: int, device: torch.device) -> Tensor:
    """Who sees whom, bool [1, 1, branches * length, prefix + branches * length]."""
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = torch.kron(torch.eye(branches, dtype=torch.bool, device=device), causal)
    seen = torch.ones(branches * length, prefix, dtype=torch.bool, device=device)
    return torch.cat([seen, own], dim=1)[None, None]


def prefill(language: Any, embeds: Tensor, table: Rotary) -> tuple[KeysValues, Tensor]:
    """Run the prefix [B, T, D]: keys and values [B, kv heads, T, head] of every layer, and the state halfway up."""
    x, cache = embeds, []
    last = len(language.layers) - 1
    middle = embeds
    for number, layer in enumerate(language.layers):
        middle = x if number == (last + 1) // 2 else middle
        if number == last:  # nobody reads the last layer's own output here
            cache.append(keys_values(layer.self_attn, rms_norm(layer.input_layernorm, x), table))
            break
        x, keys, values = run_prefix_layer(layer, x, table.cos, table.sin)
        cache.append((keys, values))
    return cache, middle


def run_branches(
    language: Any, embeds: Tensor, cache: KeysValues, table: Rotary, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Run branches [B, Q, T, D] after a prefix; the state after the final norm and one 5/8 of the way up, like them."""
    count, branches, length, width = embeds.shape
    x = middle = embeds.reshape(count, branches * length, width)
    cos, sin = table.cos.repeat(branches, 1), table.sin.repeat(branches, 1)
    for number, (layer, (keys, values)) in enumerate(zip(language.layers, cache, strict=True), 1):
        x = run_branch_layer(layer, x, keys, values, cos, sin, mask)
        middle = x if number == len(cache) * 5 // 8 else middle
    return rms_norm(language.norm, x).view(embeds.shape), middle.view(embeds.shape)


def run_prefix_layer(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One causal layer over x [B, T, D]; returns its output, keys and values."""
    h, attn = rms_norm(layer.input_layernorm, x), layer.self_attn
    keys, values = keys_values(attn, h, Rotary(cos, sin))
    q = queries(attn, h, cos, sin)
    groups = attn.num_key_value_groups
    out = F.scaled_dot_product_attention(
        q, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), is_causal=True
    )
    x = x + attn.o_proj(out.transpose(1, 2).flatten(2))
    return x + _mlp(layer, x), keys, values


def run_branch_layer(
    layer: Any, x: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
) -> Tensor:
    """One layer over branches x [B, Q * T, D] that also see the prefix's keys and values."""
    h, attn = rms_norm(layer.input_layernorm, x), layer.self_attn
    own_keys, own_values = keys_values(attn, h, Rotary(cos, sin))
    groups = attn.num_key_value_groups
    k = torch.cat([keys, own_keys], dim=2).repeat_interleave(groups, 1)
    v = torch.cat([values, own_values], dim=2).repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(queries(attn, h, cos, sin), k, v, attn_mask=mask)
    x = x + attn.o_proj(out.transpose(1, 2).flatten(2))
    return x + _mlp(layer, x)


def queries(attn: Any, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated queries [B, heads, T, head] of a normed input [B, T, D]."""
    return rotate(attn.q_proj(h).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2), cos, sin)


def keys_values(attn: Any, h: Tensor, table: Rotary) -> tuple[Tensor, Tensor]:
    """Rotated keys and values [B, kv heads, T, head] of a normed input."""
    keys, values = (
        projection(h).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for projection in (attn.k_proj, attn.v_proj)
    )
    return rotate(keys, table.cos, table.sin), values


def _mlp(layer: Any, x: Tensor) -> Tensor:
    h = rms_norm(layer.post_attention_layernorm, x)
    out: Tensor = layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
    return out
