"""Random weights for a skeleton, drawn on the GPU: the same for the same name, for the bundle and for the rival.

Matrices keep their input's scale (deviation 1 / sqrt(fan-in)), so activations stay finite through all layers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path

import onnx
import torch
from torch import Tensor

from ...export.lower.cuda_bias import COLUMNS
from ...export.quantize.kv_cache import CACHE_TYPES
from ...runtime import manifest as manifests
from .shape import VISION_7B

WRITERS = 4
FP8 = 0
"""In place of bits: numbers of a floating type."""
PACKED = "q_proj+k_proj+v_proj"
KV_SHARE = (28, 4, 4)
"""Heads of queries, keys and values in the 7B shape."""
INNER_AXIS = {"gate_proj": -1, "up_proj": -1, "down_proj": 0}
"""Which axis of an MLP's matrices, stored [in, out], is the inner width, which the lowering pads."""
AFFINE = ".affine"
"""Matrices with their bias as a row behind the last, and COLUMNS - 1 rows behind that, which nothing reads."""
QKV, HALF = ".attn.qkv", ".half"
"""The vision encoder's matrices of queries, keys and values, which its graph has in thirds and its segments whole; ends
of the names of those in float16."""
BLOCK_OPERATORS = {"MatMulNBits": 2, "GatherBlockQuantized": 2, "MatMulBlockQuantizedFp8Weight": 2}
"""Operators over quantized matrices, and which input their scales [out, in / block] are."""
TYPES = {
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
    **{"float8e4m3fn": torch.float8_e4m3fn, "uint8": torch.uint8},
}
TABLES = ("embed_tokens", "lm_head")
"""What initializers of floats are [out, in]."""
CACHES = ("key_cache.", "value_cache.")
"""How names of a KV cache's scales begin."""
HIGHEST = 5.0
"""Largest key or value that a quantized cache holds, in deviations."""
SPREAD = {8: 73.9, 4: 4.6, FP8: 1.0}
"""Standard deviation of uniform signed numbers of so many bits; of fp8 numbers, which are drawn normal."""


@dataclass(frozen=True)
class Blocks:
    """Bits of a quantized matrix' numbers (or FP8), and how many of a row share a scale."""

    bits: int
    size: int


@dataclass(frozen=True)
class Place:
    """A weight and where its bytes go."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    offset: int
    blocks: Blocks | None = None
    """Of scales: of the numbers that they belong to."""
    rows: bool = False
    """Whether a float matrix is stored [out, in]; else it is [in, out]."""
    value: float | None = None
    """What all numbers are, where they are not drawn."""


def places(folder: Path) -> Iterator[Place]:
    """Every weight that is stored beside the skeleton's graphs, once: initializers, and inputs of the manifest."""
    seen = set()
    for place in _named(folder):
        if (place.file, place.offset) not in seen:
            seen.add((place.file, place.offset))
            yield place


def _named(folder: Path) -> Iterator[Place]:
    """Every weight as often as it is named."""
    manifest = manifests.parse((folder / manifests.FILE_NAME).read_text(encoding="utf-8"))
    shared = [(weight, entry.block_form is None) for entry in manifest.graphs.values() for weight in entry.weights]
    graphs = [onnx.load(file, load_external_data=False).graph for file in sorted(folder.glob("*.onnx"))]
    blocks = {name: found for graph in graphs for name, found in _blocks(graph)}
    for weight, by_row in shared:
        rows = by_row and weight.name.endswith(".weight")
        value = cache_scale(manifest.model.cache_dtype) if weight.name.startswith(CACHES) else None
        where = (TYPES[weight.dtype], weight.file, weight.offset)
        yield Place(weight.name, weight.shape, *where, blocks.get(weight.name), rows, value)
    for graph in graphs:
        for tensor in graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                where = (_dtype(tensor), external["location"], int(external.get("offset", 0)))
                rows = any(table in tensor.name for table in TABLES)
                yield Place(tensor.name, tuple(tensor.dims), *where, blocks.get(tensor.name), rows)


def cache_scale(dtype: str) -> float:
    """A scale of a quantized KV cache, for numbers of deviation 1, as random weights behind a norm give them."""
    limits = {kind.dtype.name.lower(): kind.limit for kind in CACHE_TYPES.values()}
    return HIGHEST / limits[dtype]


def _dtype(tensor: onnx.TensorProto) -> torch.dtype:
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return TYPES["float32" if name == "float" else name]


def _blocks(graph: onnx.GraphProto) -> Iterator[tuple[str, Blocks]]:
    """The names of all scales, with what they belong to."""
    for node in graph.node:
        if node.op_type in BLOCK_OPERATORS:
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            yield node.input[BLOCK_OPERATORS[node.op_type]], Blocks(numbers.get("bits", FP8), numbers["block_size"])


def draw(place: Place, device: str = "cuda") -> Tensor:
    """A weight's values, on the device."""
    if place.value is not None:
        return torch.full(place.shape, place.value, device=device, dtype=place.dtype)
    if place.name.endswith(f"{QKV}{AFFINE}"):
        return torch.cat([draw(third, device) for third in _thirds(place)], dim=-1)
    name = place.name.removesuffix(HALF)  # the same numbers in either type
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    if place.dtype == torch.uint8:
        return torch.randint(0, 256, place.shape, generator=generator, device=device, dtype=torch.uint8)
    values = torch.randn(place.shape, generator=generator, device=device)
    if place.dtype == torch.float8_e4m3fn:
        return values.to(place.dtype)
    if place.blocks is not None:
        values = _steps(place, place.blocks, values)
    elif len(place.shape) == 1:
        values = 1 + 0.1 * values if "bias" not in place.name else 0.1 * values
    else:
        fan_in = place.shape[1 if place.rows else 0]
        values /= 1 if "embed_tokens" in place.name else sqrt(fan_in)
    if _is_padded(place):
        _padding(place, values).zero_()
    return values.to(place.dtype)


def _thirds(place: Place) -> list[Place]:
    """A query-key-value matrix as the vision graph that is not in segments has it."""
    stem, shape = place.name.removesuffix(AFFINE), (*place.shape[:-1], place.shape[-1] // 3)
    return [replace(place, name=f"{stem}.{third}{AFFINE}", shape=shape) for third in range(3)]


def _steps(place: Place, blocks: Blocks, values: Tensor) -> Tensor:
    """Scales that give random numbers a matrix's deviation: of 4 bits by block, of 8 by row, of fp8 all the same."""
    wanted = 1.0 if "embed_tokens" in place.name else 1 / sqrt(prod(place.shape[1:]) * blocks.size)
    if blocks.bits == 8:
        values = values.flatten(1)[:, :1].expand(-1, prod(place.shape[1:])).reshape(place.shape)
    return wanted / SPREAD[blocks.bits] * (1 + (0.05 if blocks.bits != FP8 else 0) * values)


def _is_padded(place: Place) -> bool:
    outward = place.name.endswith("down_proj.bias")  # as wide as the block, not as the MLP inside
    return "visual" in place.name and _module(place.name) in INNER_AXIS and not outward


def _module(name: str) -> str:
    return name.removesuffix(".bias").removesuffix(".weight").removesuffix(AFFINE).rpartition(".")[2]


def _padding(place: Place, values: Tensor) -> Tensor:
    """The part of an MLP's tensor that the lowering added to its inner width."""
    axis, inner = _inner_axis(place), VISION_7B.mlp
    return values.narrow(axis, inner, values.shape[axis] - inner)


def _without_padding(place: Place, values: Tensor) -> Tensor:
    return values.narrow(_inner_axis(place), 0, VISION_7B.mlp) if _is_padded(place) else values


def _inner_axis(place: Place) -> int:
    return 0 if len(place.shape) == 1 else INNER_AXIS[_module(place.name)]


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
    """A weight as tensors of transformers' state dict: matrices are [out, in] there, q, k and v apart.

    A third of the vision encoder's query-key-value matrix is named by its place: `....qkv.0.weight`. The whole, which
    a skeleton has as well, gives nothing.
    """
    name, values = place.name.removesuffix(HALF), _without_padding(place, values)
    if name.endswith(f"{QKV}{AFFINE}"):
        parts = []
    elif name.endswith(AFFINE):
        inputs, stem = values.shape[0] - COLUMNS, name.removesuffix(AFFINE)
        parts = [(f"{stem}.weight", values[:inputs]), (f"{stem}.bias", values[inputs])]
    elif PACKED in name:
        axis = 0 if place.rows else -1
        out = values.shape[axis]
        heads = out * KV_SHARE[0] // sum(KV_SHARE)
        widths = [heads, (out - heads) // 2, (out - heads) // 2]
        names = [name.replace(PACKED, part) for part in ("q_proj", "k_proj", "v_proj")]
        parts = list(zip(names, torch.split(values, widths, dim=axis), strict=True))
    else:
        parts = [(name, values)]
    for part_name, part in parts:
        yield part_name, part if part.dim() == 1 or place.rows else part.t()
