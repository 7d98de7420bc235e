"""Single layers of the published 7B model with random weights: what a build or a kernel costs, without a checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from ..export.facts import TextFacts, VisionFacts
from ..export.graphs.decoder import Decoder
from ..export.graphs.vision import Vision
from ..export.inputs import GraphConfig
from ..export.quantize.apply import quantize
from ..export.quantize.linears import find_linears
from ..export.recipe import FORMAT, FORMAT_MAJOR, FORMAT_MINOR, GraphRecipe, LinearRecipe, Recipe
from ..export.trace import trace
from ..export.weights import write_weights
from ..runtime import contract
from ..runtime.manifest import ModelFacts

# Qwen2.5-VL-7B-Instruct's config.json, cut to one decoder layer, one windowed and one full vision block.
TEXT = TextFacts(1, 3584, 28, 4, 128, 18_944, 152_064, 1e-6, 1e6, (16, 24, 24), False, 128_000)
VISION = VisionFacts(2, 1280, 16, 3420, 14, 2, 2, 112, (1,), 3584, 3, 2.0)
MODEL = ModelFacts(3584, 1, 4, 128, 152_064, 3, 14, 2, 2, 8, 2.0, 32_768)
DRAWN = 1_000_003
"""Numbers that are drawn for a weight; a prime, so that no row is another's copy."""
GRAPHS: dict[str, Callable[[], nn.Module]] = {
    contract.DECODER: lambda: Decoder(TEXT),
    contract.VISION: lambda: Vision(VISION),
}
SCHEMES = {
    "int8": LinearRecipe("int8", input_scale=0.05),
    "fp8": LinearRecipe("fp8", input_scale=0.05),
    "int4": LinearRecipe("int4-weights", block=32),
}


def write_layer(
    graph: str, dtype: torch.dtype, precision: str, lower: Callable[[ir.Model], ir.Model], folder: Path
) -> Path:
    """Trace a layer, give it random weights, quantize and lower it, and write it; the file."""
    signature = contract.signatures(MODEL.sizes())[graph]
    model = trace(GRAPHS[graph], GraphConfig(signature, dtype), graph)
    _fill(model)
    if precision in SCHEMES:
        quantize(model, _recipe(model, graph, precision), graph)
    model = lower(model)
    write_weights(model, folder, f"{graph}.onnx.data", lambda _: None)
    file = folder / f"{graph}.onnx"
    ir.save(model, file)
    return file


def schemes(file: Path, precision: str) -> dict[str, str]:
    """Scheme of each quantized weight of a layer written by `write_layer`."""
    if precision not in SCHEMES:
        return {}
    names = {name for name in ir.load(file).graph.initializers if "_quantized" in name}
    return {name.split("_quantized")[0]: SCHEMES[precision].scheme for name in names}


def _recipe(model: ir.Model, graph: str, precision: str) -> Recipe:
    part = GraphRecipe(dict.fromkeys(find_linears(model), SCHEMES[precision]))
    version = (FORMAT_MAJOR, FORMAT_MINOR)
    return Recipe(FORMAT, version, "", precision, {graph: part}, (), None, None)  # type: ignore[arg-type]  # by SCHEMES


def _fill(model: ir.Model) -> None:
    """Random weights of a trained one's size, drawn while writing."""
    for value in model.graph.initializers.values():
        if value.const_value is None or isinstance(
            getattr(value.const_value, "raw", None), torch._subclasses.FakeTensor
        ):
            value.const_value = _random(value)


def _random(value: ir.Value) -> ir.LazyTensor:
    """Normal numbers, a few drawn and repeated; different for each name, as TensorRT stores equal weights once."""
    shape, dtype = value.shape.numpy() if value.shape else (), value.dtype or ir.DataType.FLOAT16
    seed = zlib.crc32(str(value.name).encode())

    def load() -> ir.TensorProtocol:
        drawn = np.random.default_rng(seed).standard_normal(DRAWN, np.float32) / np.float32(shape[0] ** 0.5)
        return ir.tensor(np.resize(drawn.astype(dtype.numpy()), shape), dtype=dtype, name=value.name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=value.name)
