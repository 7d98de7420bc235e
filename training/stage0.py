"""Stage 0: teach the small model to see and to answer.

    python -m reflectrt.training.stage0 --out FOLDER [--seconds S] [--workers N]
    python -m reflectrt.training.stage0 --part answer --from FOLDER --out FOLDER2 [--seconds S] [--workers N]

The first part trains everything with dense labels, and what is kept of it is the vision encoder; the second trains a
new decoder behind it, frozen, to answer in words and in letters.

Pictures grow from 336 px to a megapixel and more, films from 16 frames to 64; several questions to a scene; part
of the questions without options, so that the answer's own words are learnt too.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import decoder, vision
from .dense import DenseHeads
from .evaluate import HELD_OUT, report
from .initial import wire
from .loop import Phase, Schedule, load_parts, save_parts, train
from .losses import Parts, see_and_answer, words_and_letters
from .model import SmallModel, load_model, new_model, save_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import Batch, Plan, make_batch
from .tokens import english, train_tokenizer

ROOT = Path(__file__).parents[1]
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
    """Words and letters: drills and questions that tell the answer at first, fewer later."""
    small = Phase(
        shares[0],
        (
            Plan(IMAGE, ((336, 336), (448, 336)), 48, 12, (1,), (5, 9), 0.35, 0.15, 0.1),
            Plan(VIDEO, ((224, 224),), 24, 12, (16,), (2, 6), 0.35, 0.15, 0.1),
        ),
    )
    middle = Phase(
        shares[1],
        (
            Plan(IMAGE, ((672, 560), (560, 672), (672, 672)), 36, 12, (1,), (6, 16), 0.25, 0.05, 0.05),
            Plan(VIDEO, ((224, 224), (336, 224)), 24, 12, (16, 24, 32), (2, 6), 0.25, 0.05, 0.05, pixel_budget=2**25),
        ),
    )
    large = Phase(
        shares[2],
        (
            Plan(IMAGE, ((1008, 1008), (1344, 784), (1344, 1008)), 14, 12, cells=(10, 24), open_share=0.2),
            Plan(VIDEO, ((224, 224), (336, 224)), 24, 12, (32, 48, 64), open_share=0.2, pixel_budget=2**25),
        ),
    )
    return small, middle, large


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
    """A new model, one saved by an earlier run, or a checkpoint in Hugging Face format (of any size)."""
    heads = DenseHeads(SmallModel().hidden)
    if folder and (folder / "config.json").exists():
        model, tokenizer = load_model(folder)
        return model.to(device), heads, tokenizer
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else train_tokenizer(english(ROOT))
    model = new_model(SmallModel(), tokenizer, seed)
    if folder:
        saved = load_parts(folder, "weights")
        own = {name.removeprefix("heads."): saved.pop(name) for name in list(saved) if name.startswith("heads.")}
        model.load_state_dict(saved)
        if own:
            heads.load_state_dict(own)
    return model.to(device), heads.to(device), tokenizer


@torch.no_grad()
def fresh_decoder(seen: Network, seed: int) -> Network:
    """A new decoder behind a trained vision encoder, whose embeddings of crops get a root mean square of 1.

    That is the length of token embeddings and of hidden states after the final norm, which later stand in their place.
    """
    model = new_model(SmallModel(), seen.tokenizer, seed)
    model.model.visual.load_state_dict(seen.model.model.visual.state_dict())
    network = Network(model.to(seen.device), seen.tokenizer)
    crops = make_batch(replace(SEEN_SIZES, split="train"), seen.tokenizer, Random(seed)).crops
    length = network.see(crops.to(seen.device)).square().mean().sqrt()
    last = model.model.visual.merger.mlp[-1]
    last.weight.div_(length)
    last.bias.div_(length)
    return network


def save_run(out: Path, model: nn.Module, heads: nn.Module | None, tokenizer: Tokenizer) -> None:
    """Weights in float32 in small files, to go on from, and the tokenizer."""
    extra = {f"heads.{name}": value for name, value in heads.state_dict().items()} if heads is not None else {}
    save_parts({**model.state_dict(), **extra}, out, "weights")
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    """Train, evaluate, save."""
    options = _arguments()
    if options.compile:
        compile_layers()
    network, heads = _begin(options)
    answering = options.part != "see"
    words = nn.Linear(SmallModel().hidden, network.model.lm_head.out_features, device=network.device)
    taught = decoder_weights(network.model) if answering else network.model.parameters()

    def loss(batch: Batch) -> tuple[Tensor, Parts]:
        if answering:
            return words_and_letters(network, words, batch)
        return see_and_answer(network, heads, batch, DENSE_WEIGHT)

    weights = [*taught, *words.parameters(), *heads.parameters()]
    train(weights, loss, _schedule(options), network.tokenizer, options.out)
    save_run(options.out, network.model, None if answering else heads, network.tokenizer)
    torch.compiler.set_stance("force_eager")  # sizes differ from batch to batch: compiling would cost more
    report(network, options.out / "accuracy.jsonl", [0], options.batches, options.workers, (SEEN_SIZES, *HELD_OUT))
    if options.checkpoint:
        save_model(network.model, network.tokenizer, options.checkpoint)


def _begin(options: argparse.Namespace) -> tuple[Network, DenseHeads]:
    """The model that the part starts from, and the heads of dense labels."""
    model, heads, tokenizer = start(options.source, options.seed, "cuda" if torch.cuda.is_available() else "cpu")
    network = Network(model, tokenizer)
    if options.part == "answer":
        return fresh_decoder(network, options.seed), heads
    if options.part == "letters":
        wire(network.model)
    return network, heads


def _schedule(options: argparse.Namespace) -> Schedule:
    phases = see_phases if options.part == "see" else answer_phases
    return Schedule(
        phases(tuple(options.steps)),
        options.rate,
        floor=options.floor,
        seed=options.seed,
        seconds=options.seconds,
        workers=options.workers,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=(2000, 1200, 900))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--floor", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part", choices=("see", "answer", "letters"), default="see")
    parser.add_argument("--batches", type=int, default=12, help="of the evaluation at the end")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="also write a Hugging Face checkpoint here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
