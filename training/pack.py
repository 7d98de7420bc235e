"""Carry a run's weights in few files: bfloat16, at most 15 MB each.

    python -m reflectrt.training.pack RUN FOLDER

A stage starts from either form; bfloat16 loses what a checkpoint in Hugging Face format loses too.
"""

import sys
from pathlib import Path

import torch

from .loop import load_parts, save_parts


def pack(run: Path, folder: Path) -> None:
    """Write `run`'s weights in half the bytes, and its tokenizer, curve and accuracy beside them."""
    weights = load_parts(run, "weights")
    half = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in weights.items()}
    save_parts(half, folder, "weights")
    (folder / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
