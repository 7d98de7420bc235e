"""Stage 0: teach the small model to see and to answer. Everything learns.

    python -m reflectrt.training.stage0 --out FOLDER [--seconds S] [--workers N] [--from FOLDER]

Pictures grow from 336 px to a megapixel and more, films from 16 frames to 64; several questions to a scene; part
of the questions without options, so that the answer's own words are learnt too.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from . import decoder, vision
from .dense import DenseHeads
from .evaluate import report
from .loop import Phase, Schedule, load_parts, save_parts, train
from .losses import see_and_answer
from .model import SmallModel, new_model, save_model
from .network import Network
from .prompt import IMAGE, VIDEO
from .scenes import Plan
from .tokens import english, train_tokenizer

DENSE_WEIGHT = 1.0


def phases(shares: tuple[int, ...]) -> tuple[Phase, ...]:
    """Small, middle, large; `shares` are their steps."""
    small = Phase(
        shares[0],
        (
            Plan(IMAGE, ((336, 336), (448, 336)), 96, 6, cells=(4, 8), open_share=0.5),
            Plan(VIDEO, ((224, 224),), 48, 6, (16,), open_share=0.5),
        ),
    )
    middle = Phase(
        shares[1],
        (
            Plan(IMAGE, ((672, 560), (560, 672), (672, 672)), 48, 8, cells=(6, 16), open_share=0.3),
            Plan(VIDEO, ((224, 224), (280, 224)), 32, 8, (16, 24, 32), open_share=0.3, pixel_budget=2**25),
        ),
    )
    large = Phase(
        shares[2],
        (
            Plan(IMAGE, ((1008, 1008), (1344, 784), (1344, 1008)), 20, 10, cells=(10, 24), open_share=0.2),
            Plan(VIDEO, ((224, 224), (336, 224), (224, 280)), 16, 10, (32, 48, 64), open_share=0.2, pixel_budget=2**25),
        ),
    )
    return small, middle, large


def compile_layers() -> None:
    """Fuse the element-wise work of a layer; one compilation serves all layers of a kind."""
    torch._dynamo.config.cache_size_limit = 64
    vision.run_block = torch.compile(vision.run_block, dynamic=True)
    decoder.run_prefix_layer = torch.compile(decoder.run_prefix_layer, dynamic=True)
    decoder.run_branch_layer = torch.compile(decoder.run_branch_layer, dynamic=True)


def start(folder: Path | None, seed: int, device: str) -> tuple[nn.Module, DenseHeads, Tokenizer]:
    """A new model, or one saved by an earlier run."""
    root = Path(__file__).parents[1]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else train_tokenizer(english(root))
    sizes = SmallModel()
    model, heads = new_model(sizes, tokenizer, seed), DenseHeads(sizes.hidden)
    if folder:
        model.load_state_dict(load_parts(folder, "model"))
        heads.load_state_dict(load_parts(folder, "heads"))
    return model.to(device), heads.to(device), tokenizer


def save_run(out: Path, model: nn.Module, heads: nn.Module | None, tokenizer: Tokenizer) -> None:
    """Weights in float32 in small files, to go on from, and the tokenizer."""
    save_parts(dict(model.state_dict()), out, "model")
    if heads is not None:
        save_parts(dict(heads.state_dict()), out, "heads")
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=(2000, 1200, 900))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", type=Path, help="also write a Hugging Face checkpoint here")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.compile:
        compile_layers()
    model, heads, tokenizer = start(options.source, options.seed, device)
    network = Network(model, tokenizer)
    schedule = Schedule(
        phases(tuple(options.steps)), options.rate, seed=options.seed, seconds=options.seconds, workers=options.workers
    )
    weights = [*model.parameters(), *heads.parameters()]
    train(weights, lambda b: see_and_answer(network, heads, b, DENSE_WEIGHT), schedule, tokenizer, options.out)
    save_run(options.out, model, heads, tokenizer)
    report(network, options.out / "accuracy.jsonl", [0], 20, options.workers)
    if options.checkpoint:
        save_model(model, tokenizer, options.checkpoint)


if __name__ == "__main__":
    main()
