"""Where the answer looks: the share of its attention that falls on the needle, with and without reflection.

    python -m reflectrt.bench.attention CHECKPOINT OUT [--limit 100] [--seed 7] [--steps 0 4]

In PyTorch, on held-out needle images of about a megapixel. The answer position is the last token of "The answer is:",
whose output chooses the letter; where it reflects, the positions of `<BOR>` and of each step are looked at as well. OUT
gets attention.json (mean share by layer, over heads and questions, with the share that even attention would give) and
attention.png (shares by layer, and one picture with what the answer, and all reflection before it, saw at each K).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..progress import Bar
from ..training import decoder
from ..training.model import load_model
from ..training.network import Network, Prefilled
from ..training.prompt import IMAGE, asked, question_text, replied
from ..training.row import token_id
from ..training.scenes import CROP, Batch
from ..training.vision import rms_norm
from . import needle

CELL = 28  # px of a merged token
PIXELS = 1_200_000  # larger pictures are left out: eager attention over them takes too long on two cores
DRAWN = 10_000  # items to choose from


@dataclass(frozen=True)
class Looked:
    """What one question attended to: weights [places, layers, heads, rows, columns] over visual tokens.

    Places are `<BOR>` and the reflection steps, if any, and last the answer position.
    """

    item: needle.ImageItem
    weights: Tensor

    def on_needle(self) -> Tensor:
        """Share [places, layers, heads] of all attention that falls on tokens which the needle touches."""
        rows, columns = self._touched()
        return self.weights[..., rows, columns].sum((-1, -2))

    def even(self) -> float:
        """The needle's share of the visual tokens."""
        touched = torch.zeros(self.weights.shape[-2:])
        touched[self._touched()] = 1
        return float(touched.mean())

    def _touched(self) -> tuple[slice, slice]:
        left, top, right, bottom = self.item.question.box
        return slice(top // CELL, -(-bottom // CELL)), slice(left // CELL, -(-right // CELL))


@torch.no_grad()
def look(network: Network, item: needle.ImageItem, steps: int) -> Looked:
    """Answer one question and keep the attention of its reflection and of the answer position."""
    batch = _batch(network, item, steps)
    visual = network.see(batch.pixels)
    prefix = network.prefill(batch, visual)
    embeds = network.embed(batch.ids)
    if steps:
        embeds = network.reflect(embeds, batch.slots, prefix, steps)
    begin, answer = int(batch.slots) - 1, int(batch.colon)
    places = [*range(begin, begin + steps + 1), answer] if steps else [answer]
    weights = _weights(network, embeds[0, 0], prefix, places)
    lead = prefix.mask.shape[-1] - prefix.mask.shape[-2] - visual.shape[1]
    shown = weights[..., lead : lead + visual.shape[1]]
    return Looked(item, shown.reshape(*shown.shape[:-1], item.size[1] // CELL, item.size[0] // CELL))


def _weights(network: Network, x: Tensor, prefix: Prefilled, places: list[int]) -> Tensor:
    """Softmax weights [places, layers, heads, prefix + branch] of tokens of one branch [T, D]."""
    found = []
    language, x = network.model.model.language_model, x[None]
    for layer, (keys, values) in zip(language.layers, prefix.cache, strict=True):
        attn, h = layer.self_attn, rms_norm(layer.input_layernorm, x)
        own, _ = decoder.keys_values(attn, h, prefix.table)
        queries = decoder.queries(attn, h, prefix.table.cos, prefix.table.sin)[0, :, places]
        seen = torch.cat([keys, own], 2)[0].repeat_interleave(attn.num_key_value_groups, 0)
        scores = queries @ seen.mT * attn.head_dim**-0.5
        found.append(scores.masked_fill(~prefix.mask[0, :, places], -torch.inf).softmax(-1))
        x = decoder.run_branch_layer(layer, x, keys, values, prefix.table.cos, prefix.table.sin, prefix.mask)
    return torch.stack(found).permute(2, 0, 1, 3)


def _batch(network: Network, item: needle.ImageItem, steps: int) -> Batch:
    """One question as a training batch of one."""
    question = item.question
    start = network.tokenizer.encode(asked(question_text(question.text, question.options, IMAGE))).ids
    reply = network.tokenizer.encode(replied("", steps)).ids
    ids = torch.tensor([[start + reply]])
    colon = ids.shape[-1] - 1 - reply[::-1].index(token_id(network.tokenizer, ":"))
    one = torch.tensor([[0]])
    return Batch(
        IMAGE, torch.from_numpy(item.pixels())[None, None], ids, ids, torch.zeros(1, 1, CROP, CROP, 3), one,
        one + len(start) + 1, one + colon, one, one, [[question.category]],
    )  # fmt: skip


def summarise(looked: Sequence[Looked]) -> dict[str, Any]:
    """Means over questions and heads; the standard error is over questions."""
    by_head = torch.stack([each.on_needle() for each in looked])  # [questions, places, layers, heads]
    shares = by_head[:, -1].mean(-1)
    whole = shares.mean(-1)
    return {
        "questions": len(looked),
        "share": float(whole.mean()),
        "standard_error": float(whole.std() / len(looked) ** 0.5),
        "share_by_layer": [round(float(value), 5) for value in shares.mean(0)],
        "best_head_by_layer": [round(float(value), 5) for value in by_head[:, -1].mean(0).amax(-1)],
        "share_by_place": [round(float(value), 5) for value in by_head.mean((0, 2, 3))],
        "even": float(np.mean([each.even() for each in looked])),
    }


def draw(shown: dict[int, Looked], summary: dict[str, Any], file: Path) -> None:
    """Shares by layer, and a picture with the attention of its answer at each K laid over it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(5 * (1 + len(shown)), 4.5), layout="constrained")
    lines, *pictures = figure.subplots(1, 1 + len(shown))
    for name, cell in summary.items():
        lines.plot(range(1, 1 + len(cell["share_by_layer"])), cell["share_by_layer"], marker="o", label=f"K = {name}")
    lines.axhline(next(iter(summary.values()))["even"], color="grey", linestyle=":", label="even attention")
    lines.set(xlabel="layer", ylabel="share of the answer's attention on the needle")
    lines.legend()
    for axes, (steps, each) in zip(pictures, shown.items(), strict=True):
        axes.imshow(each.item.pixels())
        heat = each.weights.mean((0, 1, 2)).numpy()
        extent = (0, each.item.size[0], each.item.size[1], 0)
        axes.imshow(heat / heat.max(), extent=extent, cmap="inferno", alpha=0.6, interpolation="nearest")
        left, top, right, bottom = each.item.question.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="cyan", linewidth=2))
        axes.set_title(f"K = {steps}: {each.item.question.text}", fontsize=9)
        axes.set_axis_off()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 4])
    options = parser.parse_args()
    network = Network(*load_model(options.checkpoint))
    small = (item for item in needle.images(options.seed, DRAWN) if item.size[0] * item.size[1] <= PIXELS)
    looked: dict[int, list[Looked]] = {steps: [] for steps in options.steps}
    bar = Bar("questions", sys.stderr)
    for number, item in enumerate(islice(small, options.limit), 1):
        for steps, found in looked.items():
            found.append(look(network, item, steps))
        bar.update(number, options.limit)
    bar.clear()
    summary = {str(steps): summarise(found) for steps, found in looked.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attention.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    draw({steps: found[0] for steps, found in looked.items()}, summary, options.out / "attention.png")
    for name, cell in summary.items():
        places = ", ".join(f"{share:.2%}" for share in cell["share_by_place"])
        print(f"K = {name}: {cell['share']:.2%} (standard error {cell['standard_error']:.2%}), even {cell['even']:.2%}")
        print(f"  <BOR>, steps, answer: {places}")


if __name__ == "__main__":
    main()
