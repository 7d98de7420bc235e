"""A twin of a checkpoint that computes the same function with outlier channels, as large Qwen2.5 decoders have them.

A few channels of every decoder norm and up projection are scaled up by 64 to 512, and the weights that read
them scaled down by as much: powers of two, so that not a bit of any product changes. What changes is what a quantizer
sees: a few channels are 50 to 1,000 times the median, and one scale for the tensor fits none of the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..export.checkpoint import Checkpoint

EXPONENTS = (6, 10)
"""Factors are 2 ** e for e from the first to below the second: 64 to 512."""
SHARE = 1 / 64
"""Of a tensor's channels, but two at least."""

Scaling = tuple[str, tuple[str, ...]]
"""What is scaled up along its output channels, and the weights [out, in] that read those."""


def make_twin(source: Path, target: Path, seed: int = 0) -> Path:
    """Write the twin of the checkpoint in `source` to the new folder `target`."""
    checkpoint = Checkpoint.open(source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    random = torch.Generator().manual_seed(seed)
    for written, readers in _scalings(checkpoint.text.layers):
        factors = _factors(tensors[written].shape[0], random)
        tensors[written] = _scaled(tensors[written], factors, axis=0)
        for reader in readers:
            tensors[reader] = _scaled(tensors[reader], 1 / factors, axis=1)
    target.mkdir()
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copy(file, target)
    save_file(
        {checkpoint.tensors[name].key: tensor.contiguous() for name, tensor in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


def _scalings(layers: int) -> Iterator[Scaling]:
    for index in range(layers):
        layer = f"model.language_model.layers.{index}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        yield f"{layer}input_layernorm.weight", tuple(f"{attention}{name}_proj.weight" for name in "qkv")
        yield f"{layer}post_attention_layernorm.weight", (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight")
        yield f"{mlp}up_proj.weight", (f"{mlp}down_proj.weight",)


def _factors(channels: int, random: torch.Generator) -> Tensor:
    """[channels]: 1, but for a few powers of two."""
    factors = torch.ones(channels)
    chosen = torch.randperm(channels, generator=random)[: max(2, round(channels * SHARE))]
    factors[chosen] = 2.0 ** torch.randint(*EXPONENTS, (len(chosen),), generator=random)
    return factors


def _scaled(tensor: Tensor, factors: Tensor, axis: int) -> Tensor:
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return (tensor.float() * factors.reshape(shape)).to(tensor.dtype)
