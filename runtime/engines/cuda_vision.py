"""The vision encoder on CUDA: ONNX Runtime between the attentions of its blocks, a kernel of our own in them.

    start -> q k v -> attention -> block -> q k v -> attention -> block ... attention -> end

ONNX Runtime's attention over many short windows reads its inputs at a twentieth of what memory gives, wants fp16, and
q, k and v apart and rotated. `segments.cu` takes the product of a block as it is. The ports are in `contract.py`; one
session runs all blocks, each with its own weights bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from functools import cached_property

import numpy as np

from ..engine import Buffer
from ..kernels import source
from ..kernels.arguments import Segments
from ..kernels.nvrtc import Nvrtc
from ..manifest import VisionForm
from .cuda_kernels import KernelGpu, Launch
from .device_memory import DeviceBuffer, Pool, itemsize
from .ort_cuda_graph import OrtCudaGraph, device_buffers

SOURCE = "segments.cu"
TILE, THREADS = 64, 128
"""Queries of a block, and its threads."""


class VisionSegments:
    """The vision graph of the contract, run in segments."""

    def __init__(
        self,
        gpu: KernelGpu,
        pool: Pool,
        activation: str,
        form: VisionForm,
        ends: tuple[OrtCudaGraph, OrtCudaGraph],
        blocks: Sequence[OrtCudaGraph],
    ) -> None:
        """`ends` are start and end, `blocks` the session between them once for each block but the last."""
        self._gpu, self._pool, self._activation, self._form = gpu, pool, activation, form
        (self._start, self._end), self._blocks = ends, blocks
        self._width = form.heads * form.head_dim
        macros = {"HEADS": form.heads, "HEAD_DIM": form.head_dim, "BF16": int(activation == "bfloat16")}
        capability = gpu.facts().capability
        self._compiled = Nvrtc().ahead(source(SOURCE), capability, macros)

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Queue a run from bound inputs into bound outputs."""
        given = device_buffers(inputs)
        grids, patches = given["patches"].shape[:2]
        layout = self._layout(grids, patches, given["windows"].shape[0])
        residual, qkv = self._rows(grids * patches, 1), self._rows(grids * patches, 3)
        self._start.queue(given, {"residual": residual, "qkv": qkv, **layout})
        whole = self._grid_ends(grids, patches)
        attended, spare = self._rows(grids * patches, 1), self._rows(grids * patches, 1)
        for index in range(len(self._blocks) + 1):
            full = index in self._form.full_attention_blocks
            longest = patches if full else given["windows"].shape[1]
            self._attend(qkv, layout, whole if full else layout["window_ends"], longest, attended)
            if index < len(self._blocks):
                taken = {"residual_out": spare, "qkv": qkv}
                self._blocks[index].queue({"attended": attended, "residual": residual}, taken)
                residual, spare = spare, residual
        ranks = {"window_ranks": layout["window_ranks"]}
        self._end.queue({"attended": attended, "residual": residual, **ranks}, outputs)

    def row_bytes(self) -> int:
        """What a patch takes in a run: in the sessions, each of which keeps its own, and between them."""
        sessions = (self._start, self._blocks[0], self._end) if self._blocks else (self._start, self._end)
        return sum(graph.row_bytes() for graph in sessions) + 6 * self._width * itemsize(self._activation)

    def _attend(
        self, qkv: DeviceBuffer, layout: Mapping[str, DeviceBuffer], ends: DeviceBuffer, longest: int, out: DeviceBuffer
    ) -> None:
        """Attention within segments whose `ends` [segments + 1] are given, of at most `longest` rows."""
        cos, blocks = layout["cos"], -(-longest // TILE)
        arguments = Segments(
            qkv.address, cos.address, layout["sin"].address, ends.address, out.address, cos.shape[0], blocks
        )  # fmt: skip
        how = Launch(((ends.shape[0] - 1) * blocks, self._form.heads, 1), THREADS, early=False)
        self._gpu.launch(self._kernel, how, arguments)

    def _layout(self, grids: int, patches: int, windows: int) -> dict[str, DeviceBuffer]:
        """What the start says of a grid's angles and windows."""
        angles = (patches, self._form.head_dim // 2)
        return {
            "cos": self._pool.buffer(angles, "float32"),
            "sin": self._pool.buffer(angles, "float32"),
            "window_ends": self._pool.buffer((grids * windows + 1,), "int32"),
            "window_ranks": self._pool.buffer((patches,), "int64"),
        }

    def _grid_ends(self, grids: int, patches: int) -> DeviceBuffer:
        ends = np.arange(grids + 1, dtype=np.int32) * np.int32(patches)
        buffer = self._pool.buffer(ends.shape, "int32")
        self._gpu.upload(ends.ctypes.data, buffer.address, ends.nbytes)
        return buffer

    @cached_property
    def _kernel(self) -> c_void_p:
        return self._gpu.function(self._gpu.load(self._compiled.result().code), "segments")

    def _rows(self, rows: int, parts: int) -> DeviceBuffer:
        return self._pool.buffer((rows, parts * self._width), self._activation)
