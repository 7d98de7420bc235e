"""Accuracy on held-out scenes in PyTorch: quick answers between stages. Official figures come from exported engines.

python -m reflectrt.training.evaluate CHECKPOINT --steps 0 4
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..bench.needle.items import IMAGE_CELLS, IMAGE_SIZES, VIDEO_COUNTS, VIDEO_SIZES
from .loop import load, to_device
from .model import load_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import REFLECTION, Batch, Plan

DEVELOPMENT_SEED = 990  # not a seed of the reported evaluations

HELD_OUT = (
    Plan(IMAGE, IMAGE_SIZES, 8, 6, cells=IMAGE_CELLS, split="eval", pixel_budget=2**24),
    Plan(VIDEO, VIDEO_SIZES, 8, 6, VIDEO_COUNTS, split="eval", pixel_budget=2**24),
)


@torch.no_grad()
def right(network: Network, batch: Batch, steps: int) -> Tensor:
    """Whether each question [B, Q] is answered right with `steps` latent steps (0, or up to REFLECTION)."""
    visual = network.see(batch.pixels)
    prefix = network.prefill(batch, visual)
    embeds = network.embed(batch.ids)
    if steps:
        embeds = network.reflect(embeds, batch.slots, prefix, steps)
    scores = network.letter_scores(network.branches(embeds, prefix), batch.colon)
    return scores.argmax(-1) == batch.answer


def accuracy(network: Network, plan: Plan, batches: int, steps: int, workers: int) -> dict[str, object]:
    """Share of right answers, whole and by category, over the development seed's batches of a plan."""
    plan = replace(plan, reflection=steps)
    seen: dict[str, list[bool]] = defaultdict(list)
    for batch in load(plan, network.tokenizer, DEVELOPMENT_SEED, 0, batches, workers):
        with torch.autocast(network.device.type, torch.bfloat16, enabled=network.device.type == "cuda"):
            hits = right(network, to_device(batch, network.device), steps).tolist()
        for names, row in zip(batch.category, hits, strict=True):
            for name, hit in zip(names, row, strict=True):
                seen[name].append(hit)
    every = [hit for hits in seen.values() for hit in hits]
    return {
        "kind": plan.kind,
        "steps": steps,
        "questions": len(every),
        "accuracy": round(sum(every) / len(every), 4),
        "by_category": {name: round(sum(hits) / len(hits), 3) for name, hits in sorted(seen.items())},
    }


def report(
    network: Network,
    out: Path | None,
    steps: Iterable[int],
    batches: int,
    workers: int,
    plans: Sequence[Plan] = HELD_OUT,
) -> None:
    """Print (and append to `out`) accuracy for every plan and number of steps."""
    for plan in plans:
        for count in steps:
            line = json.dumps(accuracy(network, plan, batches, count, workers))
            print(line, flush=True)
            if out:
                with out.open("a", encoding="utf-8") as lines:
                    lines.write(line + "\n")


def main() -> None:
    """Evaluate a checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, REFLECTION])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    model, tokenizer = load_model(options.checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report(Network(model.to(device), tokenizer), None, options.steps, options.batches, options.workers)


if __name__ == "__main__":
    main()
