"""What stages 1 and 2 and the plain baseline share: vision frozen, the decoder learns, one command each."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .evaluate import HELD_OUT, report
from .loop import Phase, Schedule, train
from .losses import Reflecting, answer_only, reflecting
from .model import save_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import REFLECTION, Batch, Plan
from .stage0 import compile_layers, decoder_weights, save_run, start

LARGE_IMAGES = ((1008, 1008), (1344, 784), (1344, 1008), (1008, 1344), (1568, 1120))
SMALL_IMAGES = ((672, 560), (560, 672), (672, 672))
FILMS = ((224, 224), (336, 224))


@dataclass(frozen=True)
class Mixture:
    """How much of each kind a step holds, in px of images and of video frames (0: none)."""

    image_pixels: int
    video_pixels: int


STAGE_1 = Mixture(image_pixels=2**24, video_pixels=0)
STAGE_2 = Mixture(image_pixels=2**23, video_pixels=2**25)  # images go on, so that one checkpoint keeps both


def plans(mixture: Mixture, sizes: Sequence[tuple[int, int]], reflection: int) -> tuple[Plan, ...]:
    """The batches of a step; a reflecting and a plain model draw the same scenes and questions."""
    made = []
    if mixture.image_pixels:
        made.append(
            Plan(IMAGE, tuple(sizes), 16, 10, cells=(8, 24), open_share=0.15, reflection=reflection,
                 pixel_budget=mixture.image_pixels)
        )  # fmt: skip
    if mixture.video_pixels:
        made.append(
            Plan(VIDEO, FILMS, 16, 10, (16, 32, 48, 64, 96), open_share=0.15, reflection=reflection,
                 pixel_budget=mixture.video_pixels)
        )  # fmt: skip
    return tuple(made)


def run(description: str, mixture: Mixture, how: Reflecting | None, rate: float) -> None:
    """Parse the command line, train, save, evaluate. `how` None: the plain baseline."""
    options = _options(description, rate, how)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        compile_layers()
    model, _, tokenizer = start(options.source, options.seed, device)
    network = Network(model, tokenizer)
    small, large = options.steps
    reflection = REFLECTION if how else 0
    schedule = Schedule(
        (
            Phase(small, plans(mixture, SMALL_IMAGES, reflection)),
            Phase(large, plans(mixture, LARGE_IMAGES, reflection)),
        ),
        options.rate,
        seed=options.seed,
        seconds=options.seconds,
        workers=options.workers,
    )
    if how:
        how = Reflecting(options.align, options.teacher, options.latent, options.rollout)

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return reflecting(network, batch, how) if how else answer_only(network, batch)

    train(decoder_weights(model), loss, schedule, tokenizer, options.out)
    save_run(options.out, model, None, tokenizer)
    if options.checkpoint:
        save_model(model, tokenizer, options.checkpoint)
    if options.batches:
        torch.compiler.set_stance("force_eager")
        steps = [0, 1, REFLECTION] if how else [0]
        report(network, options.out / "accuracy.jsonl", steps, options.batches, options.workers, HELD_OUT)


def _options(description: str, rate: float, how: Reflecting | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the stage before")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 700), help="over middling and large images")
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: after the steps")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batches", type=int, default=30, help="of the evaluation at the end")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="also write a Hugging Face checkpoint here")
    if how:
        parser.add_argument("--align", type=float, default=how.align)
        parser.add_argument("--teacher", type=float, default=how.teacher)
        parser.add_argument("--latent", type=float, default=how.latent)
        parser.add_argument("--rollout", type=int, default=how.rollout)
    return parser.parse_args()
