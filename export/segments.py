"""The files of a vision encoder in segments (`export/lower/cuda_segments.py`), beside those of the whole.

What both read is stored once, in the file of the whole graph's weights; the rest, the query, key and value matrices
that the whole has in thirds, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import onnx_ir as ir

from ..runtime import contract
from ..runtime.manifest import StoredWeight, VisionForm
from .forms import shared_weights
from .lower.cuda_segments import Segments
from .tensors import TensorRef
from .weights import Progress, StoredTensor, share_weights, write_tensors

OWN_FILE = "vision_blocks.data"
"""Weights that the whole graph's file does not have."""


def write_segments(
    parts: Segments, stored: Mapping[str, StoredTensor], folder: Path, progress: Progress
) -> tuple[VisionForm, tuple[StoredWeight, ...]]:
    """Save the segments and the weights that are not `stored` yet; returns the form and the weights that it binds."""
    own = write_tensors(own_weights(parts, stored), folder, OWN_FILE, progress)
    return save_segments(parts, {**stored, **own}, folder)


def segment_bytes(tensors: Mapping[str, TensorRef], float_bytes: int) -> int:
    """About what the weights take that the whole graph's file does not have."""
    return float_bytes * sum(prod(ref.shape) for name, ref in tensors.items() if name.endswith(".attn.qkv.weight"))


def own_weights(parts: Segments, stored: Mapping[str, StoredTensor]) -> dict[str, ir.TensorProtocol]:
    """Weights of the segments that are not stored yet, by name."""
    inside = (value for part in (parts.start, parts.end) for value in part.graph.initializers.values())
    bound = {str(value.name): value.const_value for value in inside if isinstance(value.const_value, ir.LazyTensor)}
    return {name: tensor for name, tensor in {**bound, **parts.weights}.items() if name not in stored}


def save_segments(
    parts: Segments, stored: Mapping[str, StoredTensor], folder: Path
) -> tuple[VisionForm, tuple[StoredWeight, ...]]:
    """Save the segments, whose weights lie where `stored` says."""
    names = contract.VISION_START, contract.VISION_BLOCK, contract.VISION_END
    start, block, end = (f"{name}.onnx" for name in names)
    for file, part in ((start, parts.start), (block, parts.block), (end, parts.end)):
        share_weights(part, stored, folder)
        ir.save(part, folder / file)
    form = VisionForm(
        start=start,
        block=block,
        end=end,
        heads=parts.heads,
        head_dim=parts.head_dim,
        inputs=parts.inputs,
        blocks=parts.blocks,
        full_attention_blocks=parts.full_attention_blocks,
    )
    return form, shared_weights(parts.weights, stored)
