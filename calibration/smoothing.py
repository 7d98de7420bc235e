"""SmoothQuant's migration (arXiv 2211.10438) where it costs nothing: channel scales move into what writes them.

    norm weight           -> q, k, v (one group: they read one tensor), gate, up; likewise in vision
    v_proj (vision: qkv)  -> o_proj: attention mixes rows, not channels; heads that share a value head share its factors
    up_proj               -> down_proj: silu(gate) * up is linear in up

`s = max|x|^alpha / max|w|^(1 - alpha)` by channel; which alpha, `alpha.py` says. Nothing can be folded into the head's
input, which is fed back as well, nor through the merger's GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..export.checkpoint import Checkpoint
from ..export.quantize.fold import reader_factors
from ..export.recipe import Fold
from .alpha import Choose
from .observations import Array

SMALLEST, LARGEST = 1e-4, 1e4
"""Bounds on factors: beyond them a channel is dead or its neighbours are."""

Reader = Callable[[str], Array]
"""A Linear's weight [out, in] by name."""


def groups(checkpoint: Checkpoint) -> Iterator[Fold]:
    """Every fold of this architecture, factors of 1; those into Linears come before those into norms."""
    text, vision = checkpoint.text, checkpoint.vision
    for index in range(text.layers):
        layer = f"model.language_model.layers.{index}."
        attn, mlp = f"{layer}self_attn.", f"{layer}mlp."
        shared = text.heads // text.kv_heads
        yield _group(f"{attn}v_proj", [f"{attn}o_proj"], text.kv_heads * text.head_dim, text.head_dim, shared)
        yield _group(f"{mlp}up_proj", [f"{mlp}down_proj"], text.mlp)
        yield _group(f"{layer}input_layernorm", [f"{attn}{name}_proj" for name in "qkv"], text.hidden)
        yield _group(f"{layer}post_attention_layernorm", [f"{mlp}gate_proj", f"{mlp}up_proj"], text.hidden)
    for index in range(vision.depth):
        block = f"model.visual.blocks.{index}."
        values = _group(f"{block}attn.qkv", [f"{block}attn.proj"], vision.hidden)
        yield replace(values, first=2 * vision.hidden)
        yield _group(f"{block}mlp.up_proj", [f"{block}mlp.down_proj"], vision.mlp)
        yield _group(f"{block}norm1", [f"{block}attn.qkv"], vision.hidden)
        yield _group(f"{block}norm2", [f"{block}mlp.gate_proj", f"{block}mlp.up_proj"], vision.hidden)
    merger = "model.visual.merger."
    yield _group(f"{merger}ln_q", [f"{merger}mlp.0"], vision.hidden, repeat=vision.merge**2)


def _group(source: str, readers: Sequence[str], channels: int, width: int = 0, repeat: int = 1) -> Fold:
    weights = tuple(f"{reader}.weight" for reader in readers)
    return Fold(f"{source}.weight", 0, weights, width or channels, repeat, (1.0,) * channels)


def smooth(groups: Iterator[Fold], maxima: Mapping[str, Array], weight: Reader, choose: Choose) -> list[Fold]:
    """Factors for every group whose readers' input was observed (`maxima` [in] by the reader's name)."""
    folds: list[Fold] = []
    for group in groups:
        if (largest := maxima.get(group.readers[0])) is None:
            continue
        weights = [_divided(name, weight(name), folds) for name in group.readers]
        reading = np.maximum.reduce([np.abs(each).max(axis=0) for each in weights])
        folds.append(choose(weights, partial(_fold, group, _by_channel(largest, group), _by_channel(reading, group))))
    return folds


def _fold(group: Fold, activations: Array, weights: Array, alpha: float) -> Fold:
    """The group with its factors at an alpha, from channel maxima of what it reads and of the weights that read it."""
    factors = _factors(activations, weights, alpha)
    return replace(group, factors=tuple(float(f"{factor:.7g}") for factor in factors))


def folded(maxima: Array, name: str, folds: Sequence[Fold]) -> Array:
    """Channel maxima [in] (or rows [n, in]) of a Linear's input once the folds are applied."""
    for fold in folds:
        if name in fold.readers:
            maxima = maxima / reader_factors(fold)
    return maxima


def _divided(name: str, weight: Array, folds: Sequence[Fold]) -> Array:
    """A weight [out, in] whose outputs earlier folds have divided."""
    for fold in folds:
        if fold.source == name:
            weight = weight.copy()
            last = fold.first + len(fold.factors)
            weight[fold.first : last] /= np.array(fold.factors, np.float32)[:, None]
    return weight


def _by_channel(reading: Array, group: Fold) -> Array:
    """The largest over the rows [blocks * repeat * width] that read one source channel, [blocks * width]."""
    largest: Array = reading.reshape(-1, group.repeat, group.width).max(axis=1).ravel()
    return largest


def _factors(activations: Array, weights: Array, alpha: float) -> Array:
    """SmoothQuant's equation 4, around a geometric mean of 1; channels that are always zero stay as they are."""
    alive = (activations > 0) & (weights > 0)
    factors = np.ones(activations.shape, np.float64)
    factors[alive] = activations[alive].astype(np.float64) ** alpha / weights[alive].astype(np.float64) ** (1 - alpha)
    if alive.any():
        factors[alive] /= np.exp(np.log(factors[alive]).mean())
    return np.clip(factors, SMALLEST, LARGEST)
