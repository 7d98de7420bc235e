"""How much a stage must do at least: operations and bytes, from the shape alone. Shares of the ceilings follow."""

from __future__ import annotations

from dataclasses import dataclass

from ...export.facts import TextFacts, VisionFacts


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of device memory that a stage cannot do without."""

    operations: float
    bytes: float


def decoder_weights(text: TextFacts) -> int:
    """Numbers in the decoder's matrices."""
    heads = (text.heads + 2 * text.kv_heads) * text.head_dim
    layer = text.hidden * heads + text.heads * text.head_dim * text.hidden + 3 * text.hidden * text.mlp
    return text.layers * layer


def prefill(text: TextFacts, tokens: int) -> Work:
    """Causal prefill of `tokens`: two operations a weight and token, and half of the attention square."""
    attention = 2 * text.layers * text.heads * text.head_dim * tokens**2
    return Work(2.0 * decoder_weights(text) * tokens + attention, 2.0 * decoder_weights(text))


def step(text: TextFacts, context: int, weight_bytes: float = 2.0, cache_itemsize: int = 2) -> Work:
    """One token behind `context`: every weight once, every key and value once."""
    cache = 2 * text.layers * text.kv_heads * text.head_dim * context * cache_itemsize
    attention = 4.0 * text.layers * text.heads * text.head_dim * context
    return Work(2.0 * decoder_weights(text) + attention, decoder_weights(text) * weight_bytes + cache)


def vision(facts: VisionFacts, patches: int, grid_patches: int) -> Work:
    """The encoder over `patches` in grids of `grid_patches`: projections, attention in windows and grids, merger."""
    block = 4 * facts.hidden**2 + 3 * facts.hidden * facts.mlp
    full = len(facts.full_attention_blocks)
    window = min(facts.window**2, grid_patches)
    attention = 4 * facts.hidden * (full * grid_patches + (facts.depth - full) * window)
    group = facts.merge**2
    merger = 2 * (group * facts.hidden) * (group * facts.hidden + facts.out_hidden) / group
    embedding = 2 * facts.patch_values * facts.hidden
    return Work(patches * (2.0 * facts.depth * block + attention + merger + embedding), 0.0)
