"""What can run a bundle: each target's lowering, the precisions that it offers, and the library that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from ..runtime.contract import FLOAT, CacheDtype
from ..runtime.engines.tensorrt_library import OLDEST
from .lower import cpu, cuda, cuda_rows, cuda_segments, tensorrt
from .lower.cuda_segments import Segments
from .quantize.plain import eight_bits_for_float_inputs, without_eight_bit_layers
from .quantize.qdq import FP8_BY_TENSOR, TYPES, NumberType
from .recipe import Recipe


@dataclass(frozen=True)
class Target:
    """What a target offers: its lowering, the precisions it runs, the library it needs."""

    lower: Callable[[ir.Model], ir.Model]
    """Rewrites a portable graph in place."""
    precisions: dict[str, torch.dtype]
    engine: dict[str, str]
    caches: Mapping[str, CacheDtype] = field(default_factory=dict)
    """Element type in which each type of a recipe's KV cache is stored; those that are missing are refused."""
    cache_engine: dict[str, str] = field(default_factory=dict)
    """What a bundle with an 8-bit cache needs instead of `engine`, where it needs more."""
    numbers: Mapping[str, NumberType] = field(default_factory=lambda: TYPES)
    """Number types of the static schemes."""
    adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe
    """A recipe as this target stores it."""
    lower_rows: Callable[[ir.Model], None] | None = None
    """Rewrites a lowered decoder in place, so that kernels of our own can run its steps over the same weights."""
    cut_vision: Callable[[ir.Model], Segments | None] | None = None
    """A portable vision graph, which is used up, in segments between attentions that kernels of our own run."""

    def cache_dtype(self, recipe: Recipe | None) -> CacheDtype:
        """Element type of a bundle's KV cache, one of the contract's."""
        return self.caches[recipe.kv_cache.type] if recipe and recipe.kv_cache else FLOAT

    def engine_for(self, cache: CacheDtype) -> dict[str, str]:
        """The engine that runs a bundle with this KV cache, and its oldest version."""
        return self.engine if cache == FLOAT else self.engine | self.cache_engine


# TensorRT has no attention kernel for float32. Quantized graphs compute in bfloat16, which has float32's range; 8-bit
# weights alone are left out: beside bfloat16 TensorRT-RTX 1.7 writes them out dequantized in every run.
TENSORRT_PRECISIONS = {"fp16": torch.float16} | dict.fromkeys(("bf16", "int8", "fp8", "int4"), torch.bfloat16)
TARGETS = {
    # 1.25 is the oldest version that the parity suite was run with, 1.32 that its 8-bit cache was.
    "cpu": Target(
        cpu.lower,
        dict.fromkeys(("fp32", "int8", "int8-weights", "fp8", "int4"), torch.float32),
        {"onnxruntime": "1.25"},
        # Its kernels have no fp8 cache: numbers are rounded through it, so that its accuracy can be measured.
        caches={"int8": "int8", "fp8": FLOAT},
        cache_engine={"onnxruntime": "1.32"},
    ),
    # 1.31 is what it was measured with; older ones lack operators.
    "cuda": Target(
        cuda.lower,
        {"fp16": torch.float16} | dict.fromkeys(("bf16", "int8-weights", "fp8", "int4"), torch.bfloat16),
        {"onnxruntime": "1.31"},
        caches={"int8": "int8", "fp8": "float8e4m3fn"},
        numbers=FP8_BY_TENSOR,
        adapt=eight_bits_for_float_inputs,
        lower_rows=cuda_rows.read_rows,
        cut_vision=cuda_segments.cut_at_attention,
    ),
    **{
        name: Target(tensorrt.lower, TENSORRT_PRECISIONS, {name: OLDEST[name]}, adapt=without_eight_bit_layers)
        for name in ("tensorrt", "tensorrt-rtx")
    },
}
ACTIVATIONS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
