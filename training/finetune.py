"""What stages 1 and 2 and both rivals share: vision frozen, the decoder learns, one command each."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .dense import PlaceHeads
from .evaluate import HELD_OUT, report
from .loop import Phase, Schedule, Source, train
from .losses import Parts, Reflecting, answer_only, reflecting, zooming
from .model import save_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import ANSWER, PLACE, REFLECTION, ZOOMED, Batch, Plan, Turn
from .stage0 import compile_layers, decoder_weights, save_run, start

LARGE_IMAGES = ((1008, 1008), (1344, 784), (1344, 1008), (1008, 1344), (1568, 1120))
SMALL_IMAGES = ((672, 560), (560, 672), (672, 672))
FILMS = ((224, 224), (336, 224))
Sources = tuple[Source, ...]
OPEN_SHARE = 0.15  # of the questions want words, so that the words are not forgotten


@dataclass(frozen=True)
class Mixture:
    """How much of each kind a step holds, in px of images and of video frames (0: none)."""

    image_pixels: int
    video_pixels: int


STAGE_1 = Mixture(image_pixels=2**24, video_pixels=0)
STAGE_2 = Mixture(image_pixels=2**23, video_pixels=2**25)  # images go on, so that one checkpoint keeps both


@dataclass(frozen=True)
class Method:
    """What a model learns from a batch. A step's px are shared out among `turns`, so every method sees as much."""

    loss: Callable[[Network, Batch], tuple[Tensor, Parts]]
    turns: tuple[Turn, ...] = (ANSWER,)
    reflection: int = 0
    evaluated: tuple[int, ...] = ()
    """Numbers of latent steps that the evaluation at the end asks with."""
    heads: nn.Module | None = None
    """What learns beside the decoder and is thrown away."""


PLAIN = Method(answer_only, evaluated=(0,))


def reflecting_with(how: Reflecting) -> Method:
    """VisReflect's loss with these weights."""
    return Method(lambda network, batch: reflecting(network, batch, how), (ANSWER,), REFLECTION, (0, 1, REFLECTION))


def zooming_with(places: PlaceHeads) -> Method:
    """The rival that zooms, every visual token being asked for its place."""
    return Method(lambda network, batch: zooming(network, places, batch), (PLACE, ZOOMED), heads=places)


def plans(mixture: Mixture, sizes: Sequence[tuple[int, int]], method: Method) -> tuple[Plan, ...]:
    """The batches of a step; a reflecting and a plain model draw the same scenes and questions."""
    made, share = [], len(method.turns)
    for turn in method.turns:
        if mixture.image_pixels:
            made.append(
                Plan(IMAGE, tuple(sizes), 16, 10, cells=(8, 24), open_share=OPEN_SHARE, reflection=method.reflection,
                     turn=turn, pixel_budget=mixture.image_pixels // share)
            )  # fmt: skip
        if mixture.video_pixels:
            made.append(
                Plan(VIDEO, FILMS, 16, 10, (16, 32, 48, 64, 96), open_share=OPEN_SHARE, reflection=method.reflection,
                     turn=turn, pixel_budget=mixture.video_pixels // share)
            )  # fmt: skip
    return tuple(made)


def record_plans(mixture: Mixture, method: Method, file: Path, media: Path) -> Sources:
    """The records of a file that fit the mixture, a plan for each kind."""
    from .records import RecordPlan, read_records  # here, because machines that train on scenes have no PyAV

    records = read_records(file, media)
    wanted = [(IMAGE, mixture.image_pixels), (VIDEO, mixture.video_pixels)]
    kinds = [tuple(record for record in records if record.kind == kind) for kind, pixels in wanted if pixels]
    found = tuple(RecordPlan(each, method.reflection > 0) for each in kinds if each)
    if not found:
        raise SystemExit(
            f"error: {file}: the records hold nothing that this stage learns from; stage 1 takes images only"
        )
    return found


def run(mixture: Mixture, method: Method, options: argparse.Namespace) -> None:
    """Train, save, evaluate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        compile_layers()
    model, _, tokenizer = start(options.source, options.seed, device)
    network = Network(model, tokenizer)
    schedule = Schedule(
        _phases(mixture, method, options),
        options.rate,
        seed=options.seed,
        seconds=options.seconds,
        workers=options.workers,
    )
    extra = list(method.heads.to(device).parameters()) if method.heads else []
    train(
        [*decoder_weights(model), *extra], lambda batch: method.loss(network, batch), schedule, tokenizer, options.out
    )
    save_run(options.out, model, None, tokenizer)
    if options.checkpoint:
        save_model(model, tokenizer, options.checkpoint)
    if options.batches:
        torch.compiler.set_stance("force_eager")
        report(network, options.out / "accuracy.jsonl", method.evaluated, options.batches, options.workers, HELD_OUT)


def _phases(mixture: Mixture, method: Method, options: argparse.Namespace) -> tuple[Phase, ...]:
    small, large = options.steps
    if options.records:
        folder = options.media or options.records.parent
        return (Phase(small + large, record_plans(mixture, method, options.records, folder)),)
    return Phase(small, plans(mixture, SMALL_IMAGES, method)), Phase(large, plans(mixture, LARGE_IMAGES, method))


def arguments(description: str | None, rate: float) -> argparse.ArgumentParser:
    """What every command takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder of the stage before")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 700), help="over middling and large images")
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long; 0: after the steps")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--records", type=Path, help="JSON lines of Visual-CoT or of the authors, in place of scenes")
    parser.add_argument("--media", type=Path, help="their folder (default: that of the records)")
    parser.add_argument("--batches", type=int, default=30, help="of the evaluation at the end")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="also write a Hugging Face checkpoint here")
    return parser


def run_stage(description: str | None, mixture: Mixture, how: Reflecting, rate: float) -> None:
    """The command of stage 1 or 2."""
    parser = arguments(description, rate)
    parser.add_argument("--align", type=float, default=how.align)
    parser.add_argument("--teacher", type=float, default=how.teacher)
    parser.add_argument("--latent", type=float, default=how.latent)
    parser.add_argument("--rollout", type=int, default=how.rollout)
    options = parser.parse_args()
    how = Reflecting(options.align, options.teacher, options.latent, options.rollout)
    run(mixture, reflecting_with(how), options)


def run_rival(description: str | None, method: Method) -> None:
    """The command of a rival, over the mixture of either stage."""
    parser = arguments(description, 5e-4)
    parser.add_argument("--mixture", type=int, choices=(1, 2), required=True, help="the stage whose data it sees")
    options = parser.parse_args()
    run(STAGE_1 if options.mixture == 1 else STAGE_2, method, options)
