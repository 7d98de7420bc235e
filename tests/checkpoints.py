"""The random checkpoints tests run on, by name: each way that published ones differ occurs at least once."""

from pathlib import Path

from reflectrt.bench.random_checkpoint import RandomShape, make_checkpoint

SHAPES = {
    # Seeds for which options vary with the question and some free texts open windows, some stop early.
    # 3:1 grouped heads of 16, the smallest: for tests that need any checkpoint.
    "small": RandomShape(heads=3, kv_heads=1, layers=2, seed=7),
    "equal-heads": RandomShape(heads=4, kv_heads=4, layers=2, hidden=128, shards=2, seed=2),
    "grouped-3-tied": RandomShape(heads=6, kv_heads=2, layers=3, tied=True, legacy_names=True, seed=2),
    "grouped-7": RandomShape(heads=7, kv_heads=1, layers=1, hidden=448, reflection="tokenizer", shards=3, seed=18),
    # The head size of the published checkpoints, which fused attention operators are tuned for.
    "wide-head": RandomShape(heads=2, kv_heads=1, layers=3, hidden=256, legacy_names=True, shards=2, seed=4),
    "linear-head": RandomShape(heads=3, kv_heads=3, layers=2, head="linear", vision_depth=5, seed=0),
    "mlp-head": RandomShape(heads=3, kv_heads=1, layers=3, head="mlp", tied=True, seed=2),
    "bfloat16": RandomShape(heads=6, kv_heads=2, layers=3, dtype="bfloat16", shards=2, seed=5),
    "plain": RandomShape(heads=3, kv_heads=1, layers=2, reflection="none", seed=7),
}


def checkpoint(folder: Path, name: str = "small") -> Path:
    """The named checkpoint below `folder`, written if it is not there yet."""
    target = folder / name
    return target if target.exists() else make_checkpoint(target, like=SHAPES[name])
