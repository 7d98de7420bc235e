"""Random weights for a skeleton, drawn on the GPU: the same for the same name, for the bundle and for the rival.

Matrices keep their input's scale (deviation 1 / sqrt(fan-in)), so activations stay finite through all layers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import onnx
import torch
from torch import Tensor

from .shape import VISION_7B

WRITERS = 4
PACKED = "q_proj+k_proj+v_proj"
KV_SHARE = (28, 4, 4)
"""Heads of queries, keys and values in the 7B shape."""
INNER_AXIS = {
    "gate_proj.weight": -1,
    "gate_proj.bias": -1,
    "up_proj.weight": -1,
    "up_proj.bias": -1,
    "down_proj.weight": 0,
}
"""Which axis of an MLP's tensors, stored [in, out], is the inner width, which the lowering pads."""


@dataclass(frozen=True)
class Place:
    """An initializer and where its bytes go."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    offset: int


def places(folder: Path) -> Iterator[Place]:
    """Every initializer of the skeleton's graphs that is stored beside them."""
    types = {onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.FLOAT16: torch.float16}
    for graph in sorted(folder.glob("*.onnx")):
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                where, offset = external["location"], int(external.get("offset", 0))
                dtype = types.get(tensor.data_type, torch.float32)
                yield Place(tensor.name, tuple(tensor.dims), dtype, where, offset)


def draw(place: Place, device: str = "cuda") -> Tensor:
    """An initializer's values, on the device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(place.name.encode()))
    values = torch.randn(place.shape, generator=generator, device=device)
    if len(place.shape) == 1:
        values = 1 + 0.1 * values if "bias" not in place.name else 0.1 * values
    else:
        fan_in = place.shape[1] if "embed_tokens" in place.name or "lm_head" in place.name else place.shape[0]
        values /= 1 if "embed_tokens" in place.name else sqrt(fan_in)
    padding = _padding(place)
    if padding is not None:
        padding(values).zero_()
    return values.to(place.dtype)


def _padding(place: Place) -> Callable[[Tensor], Tensor] | None:
    """The part of an MLP's tensor that the lowering added to its inner width; None where there is none."""
    suffix = ".".join(place.name.split(".")[-2:])
    if "visual" not in place.name or suffix not in INNER_AXIS:
        return None
    axis, inner = INNER_AXIS[suffix], VISION_7B.mlp
    return lambda values: values.narrow(axis, inner, values.shape[axis] - inner)


def _without_padding(place: Place, values: Tensor) -> Tensor:
    suffix = ".".join(place.name.split(".")[-2:])
    padded = _padding(place) is not None
    return values.narrow(INNER_AXIS[suffix], 0, VISION_7B.mlp) if padded else values


def fill(folder: Path, device: str = "cuda") -> int:
    """Write every weight file of a skeleton; returns the bytes written."""
    found = list(places(folder))
    handles = {file: os.open(folder / file, os.O_RDWR | os.O_CREAT) for file in {place.file for place in found}}
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            return sum(pool.map(lambda place: _write(handles[place.file], place, device), found))
    finally:
        for handle in handles.values():
            os.close(handle)


def _write(handle: int, place: Place, device: str) -> int:
    data = memoryview(draw(place, device).view(torch.uint8).cpu().numpy().tobytes())
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], place.offset + done)
    return done


def transformers_tensors(place: Place, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """An initializer as the tensors of transformers' state dict: matrices are [out, in] there, q, k and v apart."""
    parts = [(place.name, _without_padding(place, values))]
    if PACKED in place.name:
        out = values.shape[-1]
        heads = out * KV_SHARE[0] // sum(KV_SHARE)
        widths = [heads, (out - heads) // 2, (out - heads) // 2]
        names = [place.name.replace(PACKED, part) for part in ("q_proj", "k_proj", "v_proj")]
        parts = list(zip(names, torch.split(values, widths, dim=-1), strict=True))
    for name, part in parts:
        yield name, part if part.dim() == 1 or "embed_tokens" in name or "lm_head" in name else part.t()
