"""The vision encoder, batched: many pictures of one size at once, equal to transformers' in value.

transformers runs attention window by window in a Python loop (81 calls a block for a megapixel). Here pictures
are padded to whole windows once, and a block is one attention call over [pictures x windows, 64 patches].
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import CLIP_MEAN, CLIP_STD

PATCH, MERGE, UNIT = 14, 2, 4  # px, patches to a merged token's side, patches to a merged token


@dataclass(frozen=True)
class Windows:
    """How a picture's merged tokens fall into windows.

    place [W * S]: for each window slot the merged token that sits there (row by row), -1 where the picture ends.
    cos, sin [W * S * 4, head]: rotary tables of the patches in that order.
    """

    side: int
    count: int
    place: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def padded(self) -> bool:
        """Whether some windows reach over the picture's edge."""
        return bool((self.place < 0).any())


def windows(visual: Any, height: int, width: int, device: torch.device) -> Windows:
    """Lay a picture of height x width px out in windows of `visual`'s own size."""
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    side = visual.window_size // (PATCH * MERGE)
    high, wide = -(-rows // side), -(-columns // side)
    row, column = torch.meshgrid(torch.arange(high * side), torch.arange(wide * side), indexing="ij")
    index = torch.where((row < rows) & (column < columns), row * columns + column, -1)
    order = torch.arange(high * side * wide * side).view(high, side, wide, side).transpose(1, 2).flatten()
    sub = torch.arange(MERGE)
    patch_row = (row.flatten()[order, None, None] * MERGE + sub[:, None]).expand(-1, MERGE, MERGE).flatten()
    patch_column = (column.flatten()[order, None, None] * MERGE + sub).expand(-1, MERGE, MERGE).flatten()
    cos, sin = visual.rotary_pos_emb(torch.zeros(1), torch.stack([patch_row, patch_column], -1).to(visual.device))
    return Windows(side * side, high * wide, index.flatten()[order].to(device), cos.to(device), sin.to(device))


def patches(visual: Any, pixels: Tensor) -> Tensor:
    """Embed pixels uint8 [N, F, H, W, 3] (F = 1 still or 2 frames) as patches [N, merged tokens, 4, D].

    A still is two equal frames to the model, so the two halves of the kernel are added instead.
    """
    count, frames, height, width, _ = pixels.shape
    mean = torch.tensor(CLIP_MEAN, device=pixels.device) * 255
    std = torch.tensor(CLIP_STD, device=pixels.device) * 255
    scaled = ((pixels - mean) / std).to(torch.get_autocast_dtype("cuda") if _autocasting() else torch.float32)
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    cut = scaled.view(count, frames, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(count, rows * columns, UNIT, -1)
    kernel = visual.patch_embed.proj.weight  # [D, 3, 2, 14, 14]
    if frames == 1:
        kernel = kernel.sum(2, keepdim=True)
    return F.linear(cut, kernel.flatten(1))


def encode(visual: Any, pixels: Tensor, layout: Windows) -> Tensor:
    """Encode uint8 [N, F, H, W, 3] to merged embeddings [N, merged tokens, out], row by row."""
    embedded = patches(visual, pixels)
    count, tokens = embedded.shape[:2]
    x = embedded[:, layout.place.clamp(min=0)].flatten(1, 2)  # [N, W * S * 4, D]
    valid = (layout.place >= 0).repeat_interleave(UNIT) if layout.padded else None
    for number, block in enumerate(visual.blocks):
        full = number in visual.fullatt_block_indexes
        x = run_block(block, x, layout.cos, layout.sin, valid, 1 if full else layout.count)
    merged: Tensor = visual.merger(x.to(embedded.dtype)).view(count, -1, visual.config.out_hidden_size)
    if not layout.padded:
        return merged[:, layout.place.argsort()]
    kept = layout.place >= 0
    return merged[:, kept][:, layout.place[kept].argsort()][:, :tokens]


def run_block(block: Any, x: Tensor, cos: Tensor, sin: Tensor, valid: Tensor | None, parts: int) -> Tensor:
    """One block over x [N, P, D], attention within each of `parts` equal stretches of P."""
    x = x + _attention(block.attn, rms_norm(block.norm1, x), cos, sin, valid, parts)
    h = rms_norm(block.norm2, x)
    out: Tensor = x + block.mlp.down_proj(F.silu(block.mlp.gate_proj(h)) * block.mlp.up_proj(h))
    return out


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm in float32, given back in x's type."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    scaled: Tensor = (wide * norm.weight.float()).to(x.dtype)
    return scaled


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [..., head] in float32, given back in x's type."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _attention(attn: Any, h: Tensor, cos: Tensor, sin: Tensor, valid: Tensor | None, parts: int) -> Tensor:
    count, length, width = h.shape
    stretch = length // parts
    q, k, v = attn.qkv(h).view(count, length, 3, attn.num_heads, -1).unbind(2)
    q, k = rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None])
    q, k, v = (t.reshape(count * parts, stretch, attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    mask = None
    if valid is not None:
        mask = valid.view(1, parts, 1, 1, stretch).expand(count, -1, 1, stretch, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    projected: Tensor = attn.proj(out.transpose(1, 2).reshape(count, length, width))
    return projected


def _autocasting() -> bool:
    return torch.is_autocast_enabled("cuda")
