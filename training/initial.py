"""Initial weights that hold a look-up circuit, which a small decoder otherwise does not find in the steps it has.

To name an option by its letter, a head must carry the letter two tokens on to the option's word, and a later head must
find the word that is meant and read the letter there. Each half is useless without the other, so gradients start near
zero: from transformers' initial weights 1,430 steps, and 1,550 with longer embeddings, left letters at chance
(docs/training.md). Here both halves stand at the start, weakly; training may bend or drop them.

transformers also draws embeddings with deviation 0.02, 100 times shorter than what the first layer learns to add to
them (measured: root mean square 0.03 against 3.1), so that the token itself is lost from the residual stream. They
start at 1 here. Structured attention at the start: "Mimetic Initialization of Self-Attention Layers", arXiv 2305.09828.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Tokens back, for the heads of each group: the word before a colon; the letter before ". word" (2), before ". 7" (3: a
# digit has its space as a token of its own).
OFFSETS = ((1, 2), (1, 3))
MATCHING = 3  # layers, the last, with matching heads; those below are left to find the answer's word
POSITION_PAIRS = 8  # the fastest rotary pairs, which tell neighbouring tokens apart
POSITION_BIAS = 4.5  # 8 pairs of it lead the next token by 5 in the softmax's exponent
SLOW = 0.5  # share of the rotary pairs left out of matching: the fast ones turn within an option list
REACH = 32  # tokens from "The answer is:" back to the middle of the options: 20 to 46 in both wordings
MATCH, COPY, RESIDUAL = 1.5, 0.5, 0.5


@dataclass(frozen=True)
class Wiring:
    """What a group of heads of the first layer reads and where it writes: orthonormal rows [head, hidden].

    token: what of a token is copied; before: where that of the last token goes; letter: that of the letter's token.
    """

    token: Tensor
    before: Tensor
    letter: Tensor


@torch.no_grad()
def initialise_decoder(model: Any) -> None:
    """Set a new decoder's first weights; vision and head keep transformers' own."""
    language = model.model.language_model
    language.embed_tokens.weight.normal_()
    for layer in language.layers:
        layer.mlp.down_proj.weight.mul_(RESIDUAL)
    wire(model)


@torch.no_grad()
def wire(model: Any) -> None:
    """Put the circuit into a decoder, new or trained: in all heads of its first layer and of its last ones."""
    language = model.model.language_model
    first, frequencies = language.layers[0].self_attn, language.rotary_emb.inv_freq
    wirings = [_wiring(first) for _ in range(first.k_proj.out_features // first.head_dim)]
    _look_back(first, wirings, frequencies)
    for layer in language.layers[1:][-MATCHING:]:
        for group, wiring in enumerate(wirings):
            _match(layer.self_attn, wiring, group, frequencies)


def _wiring(attn: Any) -> Wiring:
    basis = torch.linalg.qr(torch.randn(attn.q_proj.in_features, 3 * attn.head_dim))[0].T
    return Wiring(*basis.split(attn.head_dim))


def _look_back(attn: Any, wirings: list[Wiring], frequencies: Tensor) -> None:
    """A head scores highest OFFSET tokens back, by biases: sum over pairs of cos(frequency * (distance - offset))."""
    width, groups = attn.head_dim, attn.num_key_value_groups
    for projection in (attn.q_proj, attn.k_proj):
        _redraw(projection, slice(None))
    fast = frequencies[:POSITION_PAIRS]
    queries, keys = attn.q_proj.bias.view(-1, width), attn.k_proj.bias.view(-1, width)
    keys[:, : len(fast)] = POSITION_BIAS
    for group, wiring in enumerate(wirings):
        attn.v_proj.weight[group * width : (group + 1) * width] = wiring.token
        for head, offset, place in zip(
            range(group * groups, (group + 1) * groups),
            OFFSETS[group % len(OFFSETS)],
            (wiring.before, wiring.letter),
            strict=False,
        ):
            queries[head, : len(fast)] = POSITION_BIAS * (fast * offset).cos()
            queries[head, width // 2 : width // 2 + len(fast)] = -POSITION_BIAS * (fast * offset).sin()
            attn.o_proj.weight[:, head * width : (head + 1) * width] = place.T


def _match(attn: Any, wiring: Wiring, group: int, frequencies: Tensor) -> None:
    """A group of heads finds, about REACH back, the token before the query's or that itself, and reads its letter."""
    width, groups = attn.head_dim, attn.num_key_value_groups
    pairs = torch.arange(int(SLOW * width / 2), width // 2)
    real, imaginary = pairs, pairs + width // 2
    _redraw(attn.k_proj, slice(group * width, (group + 1) * width))
    _redraw(attn.q_proj, slice(group * groups * width, (group + 1) * groups * width))
    keys, turn = attn.k_proj.weight[group * width :], REACH * frequencies[pairs, None]
    keys[real], keys[imaginary] = (MATCH * part for part in _halves(wiring.token, pairs))
    attn.v_proj.weight[group * width : (group + 1) * width] = wiring.letter
    for head, wanted in zip(range(group * groups, (group + 1) * groups), (wiring.before, wiring.token), strict=False):
        queries, (a, b) = attn.q_proj.weight[head * width :], _halves(wanted, pairs)
        queries[real] = MATCH * (a * turn.cos() + b * turn.sin())
        queries[imaginary] = MATCH * (b * turn.cos() - a * turn.sin())
        out = torch.linalg.qr(torch.randn(attn.o_proj.out_features, width))[0]
        attn.o_proj.weight[:, head * width : (head + 1) * width] = COPY * out


def _redraw(projection: Any, rows: slice) -> None:
    """Rows as transformers draws them."""
    projection.weight[rows].normal_(std=0.02)
    projection.bias[rows] = 0.0


def _halves(rows: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Rows for the two halves of rotary pairs."""
    return rows[: len(pairs)], rows[len(pairs) : 2 * len(pairs)]
