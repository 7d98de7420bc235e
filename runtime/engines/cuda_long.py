"""A decoder's long runs with fp8 MLPs: attention by ONNX Runtime, a layer at a time, products by cuBLASLt between.

    x -> [norm, q k v, attention over the cache, output product, + x, norm]  ONNX Runtime, one session for all layers
      -> round -> gate, up -> silu(gate) * up, round -> down, + x            `mlp.cu` and cuBLASLt, in fp8

ONNX Runtime's own fp8 product takes and frees memory, so waits for the device, in each call. Here nothing waits. The
weights are those that steps read; a layer's run binds its own to the names of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_void_p
from typing import Protocol

import numpy as np

from ..contract import ATTENDED, RESIDUAL, cache_names, cache_output
from ..errors import BundleError
from ..kernels import source
from ..kernels.arguments import Inner, Norm, Round
from ..kernels.nvrtc import Nvrtc
from ..manifest import LongForm, Manifest, StepForm
from .cuda_kernels import KernelGpu, Launch
from .cuda_matrices import Matrix
from .cuda_products import Fp8Products, Operands, Shape
from .cuda_steps import StepKernels
from .device_memory import DeviceBuffer, Pool

SOURCE = "mlp.cu"
KERNELS = ("round_rows", "inner_rows", "norm_rows")
THREADS, AT_ONCE = 256, 8
"""Threads of a block, and numbers that one of them takes."""
SCALE_FLOATS = 4
"""From one scale to the next: cuBLASLt refuses one that is not at a multiple of 16 bytes."""
FP8, BFLOAT16 = "float8e4m3fn", "bfloat16"

Buffers = Mapping[str, DeviceBuffer]


class LayerAttention(Protocol):
    """One layer's attention: a session with that layer's weights bound."""

    def queue(self, inputs: Buffers, outputs: Buffers) -> None:
        """Queue it; it is done when the stream is."""

    def row_bytes(self) -> int:
        """Bytes of intermediate values for each token."""


class LongRuns:
    """Runs of `tokens` or more."""

    def __init__(
        self,
        gpu: KernelGpu,
        pool: Pool,
        manifest: Manifest,
        forms: tuple[StepForm, LongForm],
        kernels: StepKernels,
        attention: Sequence[LayerAttention],
    ) -> None:
        """`kernels` have the decoder's weights, `attention` runs each layer's."""
        self._gpu, self._pool, self._model, self._norm = gpu, pool, manifest.model, kernels.norm
        self._layers, self._attention, self._epsilon = kernels.layers, attention, forms[0].epsilon
        self.tokens, self._steps = forms[1].tokens, forms[1].mlp_steps
        steps = np.zeros((len(self._layers), 2, SCALE_FLOATS), np.float32)
        steps[:, :, 0] = self._steps
        self._step_buffer = self._pool.buffer(steps.shape, "float32")
        gpu.upload(steps.ctypes.data, self._step_buffer.address, steps.nbytes)
        self._products = Fp8Products(gpu, pool)
        capability = gpu.facts().capability
        self._compiled = Nvrtc().ahead(source(SOURCE), capability, {})
        self._kernels: dict[str, c_void_p] = {}

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Queue a run of the decoder from bound inputs into bound outputs."""
        tokens = inputs["embeddings"].shape[1]
        shape = (1, tokens, self._model.hidden)
        x, normed = inputs["embeddings"], self._pool.buffer(shape, BFLOAT16)
        residuals = [self._pool.buffer(shape, BFLOAT16) for _ in range(2)]
        names = cache_names(self._model.layers)
        for index in range(len(self._layers)):
            given = {name: inputs[name] for name in ("positions", "past_length")} | {"embeddings": x}
            taken: dict[str, DeviceBuffer] = {ATTENDED: normed, RESIDUAL: residuals[index % 2]}
            for own, first in zip(names[2 * index : 2 * index + 2], names[:2], strict=True):
                given[first] = inputs[own]
                taken[cache_output(first)] = inputs[own]
            self._attention[index].queue(given, taken)
            x = residuals[index % 2]
            self._mlp(index, normed, residuals[index % 2])
        self._finish(residuals[(len(self._layers) - 1) % 2], outputs["hidden_post_norm"])

    def row_bytes(self) -> int:
        """What a token takes in a run: in attention; residuals and what is normed and rounded; the MLP's inside."""
        inner = max(layer.gate.rows for layer in self._layers)
        return self._attention[0].row_bytes() + 7 * self._model.hidden + 5 * inner

    def _mlp(self, index: int, normed: DeviceBuffer, residual: DeviceBuffer) -> None:
        """Add what the MLP makes of [1, T, D] normed inputs to the residual."""
        layer, (step, inner_step) = self._layers[index], self._steps[index]
        tokens, hidden, inner = normed.shape[1], layer.gate.inputs, layer.gate.rows
        steps = [self._step_buffer.view((1,), SCALE_FLOATS * place).address for place in (2 * index, 2 * index + 1)]
        rounded = self._pool.buffer((tokens, hidden), FP8)
        count = tokens * hidden // AT_ONCE
        self._each("round_rows", Round(normed.address, rounded.address, count, 1 / step))
        both = self._pool.buffer((tokens, 2, inner), BFLOAT16)
        for place, matrix in enumerate((layer.gate, layer.up)):
            out = both.view((tokens, inner), place * inner)
            self._multiply(matrix, rounded, steps[0], out, 2 * inner)
        activated = self._pool.buffer((tokens, inner), FP8)
        count = tokens * inner // AT_ONCE
        self._each("inner_rows", Inner(both.address, activated.address, count, inner, 1 / inner_step))
        self._multiply(layer.down, activated, steps[1], residual, hidden, added=True)

    def _multiply(
        self, matrix: Matrix, x: DeviceBuffer, step: int, out: DeviceBuffer, stride: int, added: bool = False
    ) -> None:
        """The product of fp8 numbers [T, in] times `step`, an address, and a matrix whose scales are all the same."""
        if matrix.scales is None:
            raise BundleError("a matrix of the long runs has no scale; export the bundle again")
        shape = Shape(x.shape[0], matrix.inputs, matrix.rows, stride, added)
        weight, scale = matrix.weight.address, matrix.scales.address
        self._products.multiply(shape, Operands(weight, scale, x.address, step, out.address))

    def _finish(self, residual: DeviceBuffer, hidden: DeviceBuffer) -> None:
        width = self._model.hidden
        arguments = Norm(residual.address, self._norm.address, hidden.address, width, self._epsilon)
        how = Launch((residual.shape[1], 1, 1), THREADS, early=False)
        self._gpu.launch(self._kernel("norm_rows"), how, arguments)

    def _each(self, kernel: str, arguments: Round | Inner) -> None:
        """A thread for every AT_ONCE numbers."""
        how = Launch((-(-arguments.count // THREADS), 1, 1), THREADS, early=False)
        self._gpu.launch(self._kernel(kernel), how, arguments)

    def _kernel(self, name: str) -> c_void_p:
        if name not in self._kernels:
            module = self._gpu.load(self._compiled.result().code)
            self._kernels = {kernel: self._gpu.function(module, kernel) for kernel in KERNELS}
        return self._kernels[name]
