"""Random weights for a skeleton, drawn on the GPU: the same for the same name, for the bundle and for the rival.

Matrices keep their input's scale (deviation 1 / sqrt(fan-in)), so activations stay finite through all layers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path

import onnx
import torch
from torch import Tensor

from ...export.lower.cuda_bias import COLUMNS
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
BLOCK_OPERATORS = {"MatMulNBits": 2, "GatherBlockQuantized": 2, "MatMulBlockQuantizedFp8Weight": 2}
"""Operators over quantized matrices, and which input their scales [out, in / block] are."""
TENSOR_OPERATORS = {"GemmFloat8": (1, 4)}
"""Operators over whole matrices of one scale: which inputs those are."""
SPREAD = {8: 73.9, 4: 4.6, FP8: 1.0}
"""Standard deviation of uniform signed numbers of so many bits; of fp8 numbers, which are drawn normal."""


@dataclass(frozen=True)
class Blocks:
    """Bits of a quantized matrix' numbers (or FP8), and how many of a row share a scale."""

    bits: int
    size: int


@dataclass(frozen=True)
class Place:
    """An initializer and where its bytes go."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    offset: int
    blocks: Blocks | None = None
    """Of scales: of the numbers that they belong to."""


def places(folder: Path) -> Iterator[Place]:
    """Every weight of the skeleton's graphs that is stored beside them: initializers, and inputs of the manifest."""
    types = {
        onnx.TensorProto.BFLOAT16: torch.bfloat16,
        onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.UINT8: torch.uint8,
        onnx.TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    }
    manifest = manifests.parse((folder / manifests.FILE_NAME).read_text(encoding="utf-8"))
    shared = [weight for entry in manifest.graphs.values() for weight in entry.weights]
    for weight in shared:
        yield Place(weight.name, weight.shape, torch.float8_e4m3fn, weight.file, weight.offset)
    widths = {weight.name: weight.shape[1] for weight in shared}
    for file in sorted(folder.glob("*.onnx")):
        graph = onnx.load(file, load_external_data=False).graph
        blocks = dict(_blocks(graph, widths))
        for tensor in graph.initializer:
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                where, offset = external["location"], int(external.get("offset", 0))
                dtype = types.get(tensor.data_type, torch.float32)
                yield Place(tensor.name, tuple(tensor.dims), dtype, where, offset, blocks.get(tensor.name))


def _blocks(graph: onnx.GraphProto, widths: Mapping[str, int]) -> Iterator[tuple[str, Blocks]]:
    """The names of all scales, with what they belong to; `widths` are the inputs of shared matrices."""
    for node in graph.node:
        if node.op_type in BLOCK_OPERATORS:
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            yield node.input[BLOCK_OPERATORS[node.op_type]], Blocks(numbers.get("bits", FP8), numbers["block_size"])
        elif node.op_type in TENSOR_OPERATORS:
            weight, scale = (node.input[place] for place in TENSOR_OPERATORS[node.op_type])
            yield scale, Blocks(FP8, widths[weight])


def draw(place: Place, device: str = "cuda") -> Tensor:
    """An initializer's values, on the device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(place.name.encode()))
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
        fan_in = place.shape[1] if "embed_tokens" in place.name or "lm_head" in place.name else place.shape[0]
        values /= 1 if "embed_tokens" in place.name else sqrt(fan_in)
    if _is_padded(place):
        _padding(place, values).zero_()
    return values.to(place.dtype)


def _steps(place: Place, blocks: Blocks, values: Tensor) -> Tensor:
    """Scales that give random numbers a matrix's deviation; those of fp8 are all the same, in every operator."""
    wanted = 1.0 if "embed_tokens" in place.name else 1 / sqrt(prod(place.shape[1:]) * blocks.size)
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
    """An initializer as tensors of transformers' state dict: matrices are [out, in] there, q, k and v apart.

    A third of the vision encoder's query-key-value matrix is named by its place: `....qkv.0.weight`.
    """
    name, values = place.name.removesuffix(".half"), _without_padding(place, values)
    if name.endswith(AFFINE):
        inputs, stem = values.shape[0] - COLUMNS, name.removesuffix(AFFINE)
        parts = [(f"{stem}.weight", values[:inputs]), (f"{stem}.bias", values[inputs])]
    elif PACKED in name:
        out = values.shape[-1]
        heads = out * KV_SHARE[0] // sum(KV_SHARE)
        widths = [heads, (out - heads) // 2, (out - heads) // 2]
        names = [name.replace(PACKED, part) for part in ("q_proj", "k_proj", "v_proj")]
        parts = list(zip(names, torch.split(values, widths, dim=-1), strict=True))
    else:
        parts = [(name, values)]
    for part_name, part in parts:
        whole = part.dim() == 1 or "embed_tokens" in part_name or "lm_head" in part_name
        yield part_name, part if whole else part.t()
