"""Stage 0: teach the small model to see and to answer.

    python -m reflectrt.training.stage0 --out FOLDER [--seconds S] [--workers N]
    python -m reflectrt.training.stage0 --part answer --from FOLDER --out FOLDER2 [--seconds S] [--workers N]

The first part trains everything and ends with a model that says in words what it was asked; the second, vision
frozen, teaches it the letters of the options.

Pictures grow from 336 px to a megapixel and more, films from 16 frames to 64; several questions to a scene; part
of the questions without options, so that the answer's own words are learnt too.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import decoder, vision
from .dense import DenseHeads
from .evaluate import HELD_OUT, report
from .loop import Phase, Schedule, load_parts, save_parts, train
from .losses import answer_only, see_and_answer
from .model import SmallModel, new_model, save_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import Batch, Plan
from .tokens import english, train_tokenizer

DENSE_WEIGHT = 1.0
SEEN_SIZES = Plan(IMAGE, ((336, 336), (448, 336)), 48, 6, cells=(4, 8), split="eval")


def see_phases(shares: tuple[int, ...]) -> tuple[Phase, ...]:
    """Small, middle, large; `shares` are their steps."""
    small = Phase(
        shares[0],
        (
            Plan(IMAGE, ((336, 336), (448, 336)), 48, 6, cells=(4, 8), open_share=0.5),
            Plan(VIDEO, ((224, 224),), 24, 6, (16,), open_share=0.5),
        ),
    )
    middle = Phase(
        shares[1],
        (
            Plan(IMAGE, ((672, 560), (560, 672), (672, 672)), 20, 8, cells=(6, 16), open_share=0.3),
            Plan(VIDEO, ((224, 224), (280, 224)), 20, 8, (16, 24, 32), open_share=0.3, pixel_budget=2**24),
        ),
    )
    large = Phase(
        shares[2],
        (
            Plan(IMAGE, ((1008, 1008), (1344, 784), (1344, 1008)), 8, 10, cells=(10, 24), open_share=0.2),
            Plan(VIDEO, ((224, 224), (336, 224), (224, 280)), 16, 10, (32, 48, 64), open_share=0.2, pixel_budget=2**24),
        ),
    )
    return small, middle, large


def answer_phases(shares: tuple[int, ...]) -> tuple[Phase, ...]:
    """Letters: a third of the questions tell the answer at first, fewer later. No size needs padded windows."""
    small = Phase(
        shares[0],
        (
            Plan(IMAGE, ((336, 336), (448, 336)), 32, 12, cells=(5, 9), open_share=0.2, hint_share=0.35),
            Plan(VIDEO, ((224, 224),), 16, 12, (16,), open_share=0.2, hint_share=0.35),
        ),
    )
    middle = Phase(
        shares[1],
        (
            Plan(IMAGE, ((672, 560), (560, 672), (672, 672)), 16, 12, cells=(6, 16), open_share=0.15, hint_share=0.1),
            Plan(VIDEO, ((224, 224), (336, 224)), 16, 12, (16, 24, 32), (1, 1), 0.15, 0.1, pixel_budget=2**24),
        ),
    )
    large = Phase(
        shares[2],
        (
            Plan(IMAGE, ((1008, 1008), (1344, 784), (1344, 1008)), 6, 12, cells=(10, 24), open_share=0.15),
            Plan(VIDEO, ((224, 224), (336, 224)), 16, 12, (32, 48, 64), open_share=0.15, pixel_budget=2**24),
        ),
    )
    return small, middle, large


def drill_phases(shares: tuple[int, ...]) -> tuple[Phase, ...]:
    """Letters by drill: four branches in ten are drills."""
    image = Plan(IMAGE, ((336, 336), (448, 336)), 24, 16, (1,), (6, 9), 0.15, 0.15, 0.4)
    video = Plan(VIDEO, ((224, 224),), 12, 12, (16,), (2, 6), 0.15, 0.15, 0.4)
    return (Phase(sum(shares), (image, video)),)


def decoder_weights(model: Any) -> list[nn.Parameter]:
    """Freeze vision and merger and return what is left to learn."""
    model.model.visual.requires_grad_(False)
    return [*model.model.language_model.parameters(), *model.lm_head.parameters()]


def compile_layers() -> None:
    """Fuse the element-wise work of a layer; one compilation serves all layers of a kind."""
    torch._dynamo.config.cache_size_limit = 64
    vision.run_block = torch.compile(vision.run_block, dynamic=True)
    decoder.run_prefix_layer = torch.compile(decoder.run_prefix_layer, dynamic=True)
    decoder.run_branch_layer = torch.compile(decoder.run_branch_layer, dynamic=True)


def start(folder: Path | None, seed: int, device: str) -> tuple[Any, DenseHeads, Tokenizer]:
    """A new model, or one saved by an earlier run."""
    root = Path(__file__).parents[1]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else train_tokenizer(english(root))
    sizes = SmallModel()
    model, heads = new_model(sizes, tokenizer, seed), DenseHeads(sizes.hidden)
    if folder:
        saved = load_parts(folder, "weights")
        own = {name.removeprefix("heads."): saved.pop(name) for name in list(saved) if name.startswith("heads.")}
        model.load_state_dict(saved)
        if own:
            heads.load_state_dict(own)
    return model.to(device), heads.to(device), tokenizer


def save_run(out: Path, model: nn.Module, heads: nn.Module | None, tokenizer: Tokenizer) -> None:
    """Weights in float32 in small files, to go on from, and the tokenizer."""
    extra = {f"heads.{name}": value for name, value in heads.state_dict().items()} if heads is not None else {}
    save_parts({**model.state_dict(), **extra}, out, "weights")
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=(2000, 1200, 900))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--floor", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part", choices=("see", "answer", "drill"), default="see")
    parser.add_argument("--batches", type=int, default=12, help="of the evaluation at the end")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="also write a Hugging Face checkpoint here")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        compile_layers()
    model, heads, tokenizer = start(options.source, options.seed, device)
    network = Network(model, tokenizer)
    schedule = Schedule(
        {"see": see_phases, "answer": answer_phases, "drill": drill_phases}[options.part](tuple(options.steps)),
        options.rate,
        floor=options.floor,
        seed=options.seed,
        seconds=options.seconds,
        workers=options.workers,
    )
    answering = options.part != "see"
    weights = decoder_weights(model) if answering else [*model.parameters(), *heads.parameters()]

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return answer_only(network, batch) if answering else see_and_answer(network, heads, batch, DENSE_WEIGHT)

    train(weights, loss, schedule, tokenizer, options.out)
    save_run(options.out, model, heads, tokenizer)
    torch.compiler.set_stance("force_eager")  # sizes differ from batch to batch: compiling would cost more
    report(network, options.out / "accuracy.jsonl", [0], options.batches, options.workers, (SEEN_SIZES, *HELD_OUT))
    if options.checkpoint:
        save_model(model, tokenizer, options.checkpoint)


if __name__ == "__main__":
    main()
