"""The vision graph: patches of temporal grids in, one embedding per merged visual token out.

Temporal grids never attend to each other in Qwen2.5-VL, so they are the batch. All grids of one run share their size.
Windowed attention gathers queries, keys and values into equal windows (`windows`, padded with -1 where a window is cut
at the grid's edge), attends inside each under a mask, and gathers back (`window_slots`): exact for every grid, and no
tensor grows with patches x patches. Blocks with full attention see the patches of a grid as they come.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..facts import VisionFacts
from .layers import (
    Array,
    Linear,
    RMSNorm,
    SwiGLU,
    attention,
    inverse_frequencies,
    join_heads,
    rotary,
    split_heads,
    split_last,
    unflatten,
)


class Windows:
    """Where each window's patches stand: index [W * S] into the patches, mask [G * W, 1, S, S], way back [N]."""

    def __init__(self, windows: Tensor, slots: Tensor, grids: int) -> None:
        self.size = windows.shape[1]
        self.index = windows.clamp(min=0).flatten()
        # ONNX Runtime 1.32 broadcasts a mask over batch and heads, but not over queries.
        filled = (windows >= 0).unsqueeze(0).unsqueeze(2).expand(grids, -1, self.size, -1)
        self.mask = filled.flatten(0, 1).unsqueeze(1)
        self.slots = slots


class VisionAttention(nn.Module):
    """Self-attention of one block, full over a grid or inside windows."""

    def __init__(self, facts: VisionFacts) -> None:
        super().__init__()
        self.heads, self.head_dim = facts.heads, facts.hidden // facts.heads
        self.qkv = Linear(facts.hidden, 3 * facts.hidden, bias=True)
        self.proj = Linear(facts.hidden, facts.hidden, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, windows: Windows | None) -> Tensor:
        query, key, value = (split_heads(part, self.heads, self.head_dim) for part in split_last(self.qkv(x), 3))
        query, key = rotary(query, cos, sin), rotary(key, cos, sin)
        if windows is None:
            return self.proj(join_heads(attention(query, key, value)))  # type: ignore[no-any-return]
        return self.proj(self.windowed(query, key, value, windows))  # type: ignore[no-any-return]

    def windowed(self, query: Tensor, key: Tensor, value: Tensor, windows: Windows) -> Tensor:
        """[G, H, N, head_dim] each -> [G, N, H * head_dim], attending inside windows only."""
        query, key, value = (self.into_windows(x, windows) for x in (query, key, value))
        out = attention(query, key, value, windows.mask)
        out = unflatten(join_heads(out), 0, (-1, windows.index.shape[0] // windows.size)).flatten(1, 2)
        return out.index_select(1, windows.slots)

    def into_windows(self, x: Tensor, windows: Windows) -> Tensor:
        """[G, H, N, head_dim] -> [G * W, H, S, head_dim]."""
        x = x.transpose(1, 2).index_select(1, windows.index)
        return unflatten(x, 1, (-1, windows.size)).flatten(0, 1).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm vision block."""

    def __init__(self, facts: VisionFacts, full_attention: bool) -> None:
        super().__init__()
        self.full_attention = full_attention
        self.norm1 = RMSNorm(facts.hidden, facts.rms_eps)
        self.norm2 = RMSNorm(facts.hidden, facts.rms_eps)
        self.attn = VisionAttention(facts)
        self.mlp = SwiGLU(facts.hidden, facts.mlp, bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, windows: Windows) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, None if self.full_attention else windows)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """The patch convolution as one matrix product: its stride equals its kernel."""

    def __init__(self, facts: VisionFacts) -> None:
        super().__init__()
        self.proj = Linear(facts.patch_values, facts.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # type: ignore[no-any-return]


class Merger(nn.Module):
    """Norm, then two linear layers over each merge x merge group of patches, which stand side by side."""

    def __init__(self, facts: VisionFacts) -> None:
        super().__init__()
        self.group = facts.merge**2
        inner = facts.hidden * self.group
        self.ln_q = RMSNorm(facts.hidden, facts.rms_eps)
        # Indices as in the checkpoint, where 1 is the GELU between them.
        self.mlp = nn.ModuleDict(
            {"0": Linear(inner, inner, bias=True), "2": Linear(inner, facts.out_hidden, bias=True)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = unflatten(self.ln_q(x), 1, (-1, self.group)).flatten(2)
        return self.mlp["2"](functional.gelu(self.mlp["0"](x)))  # type: ignore[no-any-return]


class Vision(nn.Module):
    """Qwen2.5-VL's vision encoder and merger; see `runtime/contract.py` for inputs and outputs."""

    pixel_scale: Tensor
    pixel_shift: Tensor
    inv_freq: Tensor

    prefix = "model.visual."

    def __init__(self, facts: VisionFacts) -> None:
        super().__init__()
        self.facts = facts
        self.patch_embed = PatchEmbed(facts)
        self.blocks = nn.ModuleList(Block(facts, index in facts.full_attention_blocks) for index in range(facts.depth))
        self.merger = Merger(facts)
        self.register_buffer("pixel_scale", torch.empty(facts.patch_values), persistent=False)
        self.register_buffer("pixel_shift", torch.empty(facts.patch_values), persistent=False)
        self.register_buffer("inv_freq", torch.empty(facts.hidden // facts.heads // 4), persistent=False)

    def constants(self) -> dict[str, Array]:
        """Values of the buffers: pixel normalisation `x * scale + shift`, and rotary frequencies of one axis."""
        facts = self.facts
        per_channel = facts.patch_values // facts.in_channels  # patch values are channel-major
        std, mean = (np.repeat(np.array(v), per_channel) for v in (facts.image_std, facts.image_mean))
        half = facts.hidden // facts.heads // 2
        return {
            "pixel_scale": (1.0 / (255.0 * std)).astype(np.float32),
            "pixel_shift": (-mean / std).astype(np.float32),
            "inv_freq": inverse_frequencies(half, 10_000.0),  # axial base of Qwen2.5-VL's code
        }

    def forward(self, patches: Tensor, patch_positions: Tensor, windows: Tensor, window_slots: Tensor) -> Tensor:
        pixels = patches.to(torch.float32) * self.pixel_scale + self.pixel_shift
        x = self.patch_embed(pixels.to(self.patch_embed.proj.weight.dtype))
        angles = (patch_positions.unsqueeze(-1).to(torch.float32) * self.inv_freq).flatten(1)
        angles = angles.unsqueeze(0).expand(patches.shape[0], -1, -1)  # [G, N, head_dim/2]: row, then column
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        shared = Windows(windows, window_slots, patches.shape[0])
        for block in self.blocks:
            x = block(x, cos, sin, shared)
        return self.merger(x)  # type: ignore[no-any-return]
