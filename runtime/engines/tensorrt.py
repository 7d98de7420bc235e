"""The engine over TensorRT, TensorRT-RTX or TensorRT's lean runtime: plans on one GPU, everything in device memory.

A plan is chosen by what is there (library, version, compute capability), deserialised, and its ports and aliases are
held against the contract before it runs. Graphs run one after another on one stream and share one scratch block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import contract
from ..bundle import Bundle
from ..engine import Array, Buffer, Graph
from ..errors import CompatibilityError, ReflectRTError
from ..memory_plan import check_fits, plan_engines, resident_share, without_streamed
from ..plans import EnginePlan, Machine, choose, runnable
from . import bfloat16
from .cuda_graph import CapturingGpu
from .device_memory import Block, DeviceBuffer, Pool, device_buffer
from .tensorrt_graphs import TensorRTDecoder, TensorRTGraph, TensorRTVision
from .tensorrt_library import library_for
from .tensorrt_loading import check_engine, limit_weights, load_plan


class TensorRTEngine:
    """Plans of one bundle on one GPU."""

    device = "cuda"
    text_apart = False

    def __init__(self, bundle: Bundle, index: int = 0) -> None:
        """Raises CompatibilityError (library, GPU or plans do not fit), BundleError and ResourceError."""
        manifest = bundle.manifest
        if manifest.target not in ("tensorrt", "tensorrt-rtx"):
            raise CompatibilityError(f"{bundle.path} was exported for {manifest.target}; export with --target tensorrt")
        self._bundle = bundle
        self._library = library_for(manifest.target, manifest.plans)  # type: ignore[arg-type]  # checked above
        self.gpu = CapturingGpu(index)
        major, minor = self.gpu.facts().capability
        self._machine = Machine(self._library.name, self._library.version, f"SM{major}{minor}", self._library.lean)
        chosen = {name: choose(manifest.plans, self._machine, name) for name in manifest.graphs}
        memory, free = plan_engines(manifest.model, chosen.values()), self.gpu.free_bytes()
        self._resident = resident_share(memory, chosen.values(), free)
        check_fits(without_streamed(memory, chosen.values(), self._resident), free)
        self._float = manifest.activation
        self.activation = bfloat16.DTYPE if self._float == "bfloat16" else np.dtype(self._float)
        self._pool = Pool(self.gpu)
        decoders = [p for p in manifest.plans if p.graph == contract.DECODER and runnable(p, self._machine)]
        self._scratch = self._pool.take(max(1, *(max(p.scratch_bytes) for p in [*chosen.values(), *decoders])))
        self._outgrown: list[Block] = []
        self.chunk_tokens = min(max(profile["tokens"][2] for profile in plan.profiles) for plan in decoders)
        self.vision_patches = max(p["patches"][2] * p["grids"][2] for p in chosen[contract.VISION].profiles)
        self.cache_capacities = tuple(sorted({plan.capacity for plan in decoders}))
        rest = {name: self.load(plan) for name, plan in chosen.items() if name != contract.DECODER}
        self._graphs: dict[str, Graph] = {
            **rest,
            contract.VISION: TensorRTVision(rest[contract.VISION]),
            contract.DECODER: TensorRTDecoder(self, decoders),
        }

    def graph(self, name: str) -> Graph:
        """A graph by its name in the contract."""
        return self._graphs[name]

    def load(self, plan: EnginePlan) -> TensorRTGraph:
        """Deserialise a plan and hold it against the contract."""
        entry = self._bundle.manifest.graphs[plan.graph]
        loaded = load_plan(self._library, self._bundle.file(plan.file), plan)
        check_engine(loaded, plan, entry.signature(), self._bundle.manifest.activation)
        limit_weights(loaded, plan, self._resident)
        return TensorRTGraph(self, plan, loaded, entry.signature())

    def new_context(self, loaded: Any, profile: int) -> Any:
        """An execution context of a profile, over the shared scratch block."""
        strategy = self._library.api.ExecutionContextAllocationStrategy.USER_MANAGED
        context = loaded.create_execution_context(strategy)
        if context is None:
            raise ReflectRTError("TensorRT makes no execution context; close other programs on the GPU and try again")
        context.set_optimization_profile_async(profile, self.gpu.stream)
        scratch = self._scratch_of(loaded.device_memory_size_v2)
        context.set_device_memory(scratch.address, scratch.size)
        return context

    def _scratch_of(self, size: int) -> Block:
        """The shared block, or a larger one where streaming weights takes more than the plan's record says."""
        if size > self._scratch.size:
            self._outgrown.append(self._scratch)  # contexts hold its address
            self._scratch = self._pool.take(size)
        return self._scratch

    def empty(self, shape: Sequence[int], dtype: str = contract.FLOAT) -> DeviceBuffer:
        """An uninitialised buffer of a type of the contract. Raises ResourceError."""
        return self.buffer(shape, self._float if dtype == contract.FLOAT else dtype)

    def zeros(self, shape: Sequence[int], dtype: str = contract.FLOAT) -> DeviceBuffer:
        """A buffer of zeros. Raises ResourceError."""
        buffer = self.empty(shape, dtype)
        self.gpu.clear(buffer.address, buffer.nbytes)
        return buffer

    def buffer(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """An uninitialised buffer of any type. Raises ResourceError."""
        return self._pool.buffer(shape, dtype)

    def upload(self, array: Array) -> DeviceBuffer:
        """The array on the device; floats in the activation type."""
        if array.dtype.kind == "f":
            array = bfloat16.from_float32(array) if self._float == "bfloat16" else array.astype(self.activation)
            target = self.empty(array.shape)
        else:
            target = self.buffer(array.shape, array.dtype.name)
        array = np.ascontiguousarray(array)
        self.gpu.upload(array.ctypes.data, target.address, array.nbytes)
        return target

    def download(self, buffer: Buffer) -> Array:
        """The buffer on the host; floats as float32."""
        source = device_buffer(buffer)
        array = np.empty(source.shape, np.uint16 if source.dtype == "bfloat16" else source.dtype)
        self.gpu.download(source.address, array.ctypes.data, array.nbytes)
        if source.dtype == "bfloat16":
            return bfloat16.to_float32(array)
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy a [1, H, R, d] buffer over the first R rows of a [1, H, C, d] one."""
        old, new = device_buffer(source), device_buffer(target)
        heads = old.shape[1]
        pitches = (old.nbytes // heads, new.nbytes // heads)
        self.gpu.copy_pieces(old.address, new.address, pitches[0], pitches, heads)

    def wait(self) -> None:
        """Nothing: every run is done when it returns."""

    def free_bytes(self) -> int:
        """Memory that can be had on the device now."""
        return self._pool.free_bytes()
