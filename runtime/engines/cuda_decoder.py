"""The decoder on CUDA: which of its forms a run takes.

Steps, runs of up to MAX_TOKENS, are our own kernels where the bundle says what they need (`cuda_steps.py`), else
ONNX Runtime's. A CUDA graph replays fixed addresses. Our kernels look up in a `Mail` what is another at each step: one
small copy, and the replay launches all of them. ONNX Runtime's go through small fixed buffers: embedding, position and
length are copied in, the hidden state out. A graph belongs to the KV cache and the number of tokens that it was
captured with.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import onnxruntime as ort

from .. import contract
from ..contract import cache_output
from ..engine import Array, Buffer
from ..kernels.arguments import Mail
from .cuda_graph import CapturedWork
from .cuda_long import LongRuns
from .cuda_steps import StepKernels
from .device_memory import DeviceBuffer, HeldBlock, device_buffer
from .ort_cuda_graph import GRAPH, OrtCudaGraph, device_buffers
from .step_blocks import MAX_TOKENS

Buffers = Mapping[str, Buffer]

MAX_GRAPHS = 16
"""Captured graphs that are kept, those lately used; each holds some MB."""


class Memory(Protocol):
    """Where fixed buffers come from, and how they are filled."""

    def buffer(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """An uninitialised buffer."""

    def move(self, source: DeviceBuffer, target: DeviceBuffer) -> None:
        """Copy a whole buffer into one of the same size."""

    def write(self, target: DeviceBuffer, numbers: ctypes.Structure) -> None:
        """Put a structure into a buffer."""

    def download(self, buffer: Buffer) -> Array:
        """The buffer on the host."""


class Step(Protocol):
    """A captured run."""

    def run(self, memory: Memory, inputs: Buffers, outputs: Buffers) -> None:
        """Run it once more, over these inputs of the contract into these outputs."""

    def forget(self) -> None:
        """It will not run again."""


@dataclass(frozen=True)
class MailedStep:
    """Of our own kernels."""

    mail: DeviceBuffer
    work: CapturedWork

    def run(self, memory: Memory, inputs: Buffers, outputs: Buffers) -> None:
        """Write the mail and replay."""
        positions = _numbers(memory, inputs["positions"]).flatten().tolist()
        memory.write(
            self.mail,
            Mail(
                int(_numbers(memory, inputs["past_length"]).item()),
                device_buffer(inputs["embeddings"]).address,
                device_buffer(outputs["hidden_post_norm"]).address,
                tuple(positions),
            ),
        )
        self.work.replay()

    def forget(self) -> None:
        """The work is freed with this object."""


@dataclass(frozen=True)
class CopiedStep:
    """Of ONNX Runtime: the fixed buffers that it reads and writes."""

    inputs: Mapping[str, DeviceBuffer]
    hidden: DeviceBuffer
    replay: Callable[[], None]
    forget: Callable[[], None]

    def run(self, memory: Memory, inputs: Buffers, outputs: Buffers) -> None:
        """Copy in, replay, copy out."""
        for name, fixed in self.inputs.items():
            memory.move(device_buffer(inputs[name]), fixed)
        self.replay()
        memory.move(self.hidden, device_buffer(outputs["hidden_post_norm"]))


def _numbers(memory: Memory, buffer: Buffer) -> Array:
    """A buffer's integers, which are on the host still where they have just been made; else the GPU is waited for."""
    found, block = device_buffer(buffer), device_buffer(buffer).block
    if isinstance(block, HeldBlock) and (found.offset, found.shape) == (0, block.array.shape):
        return block.array
    return memory.download(buffer)


class OrtCudaDecoder(OrtCudaGraph):
    """The decoder: steps are captured once for each KV cache, then replayed; long runs may have a form of their own."""

    def __init__(
        self,
        session: ort.InferenceSession,
        memory: Memory,
        weights: Mapping[str, DeviceBuffer] = MappingProxyType({}),
        long: LongRuns | None = None,
        kernels: StepKernels | None = None,
    ) -> None:
        super().__init__(session, contract.DECODER, weights)
        self._memory, self._long, self._kernels = memory, long, kernels
        self._steps: OrderedDict[Hashable, Step] = OrderedDict()
        self._captured = 0

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run from bound inputs into bound outputs."""
        tokens = inputs["embeddings"].shape[1]
        if self._long and tokens >= self._long.tokens:
            self._long.run(device_buffers(inputs), device_buffers(outputs))
            return
        if tokens > (self._kernels.most_tokens if self._kernels else MAX_TOKENS):
            super().run(inputs, outputs)
            return
        self._step(inputs).run(self._memory, inputs, outputs)

    def row_bytes(self) -> int:
        """Of the form that takes more."""
        return max(super().row_bytes(), self._long.row_bytes() if self._long else 0)

    def _step(self, inputs: Buffers) -> Step:
        """What runs this KV cache and so many tokens; a new one is captured, ONNX Runtime's by its first run."""
        caches = [device_buffer(buffer) for name, buffer in inputs.items() if "_cache." in name]
        key = (inputs["embeddings"].shape[1], caches[0].shape, *[cache.address for cache in caches])
        if key not in self._steps:
            self._steps[key] = self._new_step(inputs)
            if len(self._steps) > MAX_GRAPHS:
                _, oldest = self._steps.popitem(last=False)
                oldest.forget()
        self._steps.move_to_end(key)
        return self._steps[key]

    def _new_step(self, inputs: Buffers) -> Step:
        caches = {name: device_buffer(buffer) for name, buffer in inputs.items() if "_cache." in name}
        if self._kernels is None:
            return self._copied_step(inputs, caches)
        mail = self._memory.buffer((ctypes.sizeof(Mail),), "uint8")
        return MailedStep(mail, self._kernels.capture(inputs["embeddings"].shape[1], mail.address, caches))

    def _copied_step(self, inputs: Buffers, caches: dict[str, DeviceBuffer]) -> CopiedStep:
        small = {name: device_buffer(buffer) for name, buffer in inputs.items() if name not in caches}
        fixed = {name: self._memory.buffer(buffer.shape, buffer.dtype) for name, buffer in small.items()}
        hidden = self._memory.buffer(small["embeddings"].shape, small["embeddings"].dtype)
        binding = self.new_binding()
        updated = {cache_output(name): buffer for name, buffer in caches.items()}
        self.bind(binding, fixed | caches, {"hidden_post_norm": hidden, **updated})
        self._captured += 1
        number = self._captured
        return CopiedStep(
            fixed,
            hidden,
            lambda: self.run_bound(binding, {GRAPH: str(number)}),
            lambda: self._session.release_captured_graph(number),
        )
