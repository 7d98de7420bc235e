"""The engine over ONNX Runtime's CUDA provider: everything stays in device memory, steps are CUDA graphs.

A CUDA graph replays fixed addresses. So the decoder's one-token runs go through small fixed buffers: embedding,
position and length are copied in, the hidden state out, a few KB on the device's own stream, and the replay launches
some 500 kernels at once. A graph belongs to the KV cache and the number of tokens that it was captured with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime as ort

from .. import contract
from ..bundle import Bundle
from ..contract import FLOAT, cache_output
from ..engine import Array, Buffer
from ..errors import BundleError, ResourceError
from ..manifest import GraphEntry, StoredWeight
from . import bfloat16
from .cuda import Gpu
from .cuda_runs import ROW_BYTES, RowBytes, plan_runs
from .device_memory import DeviceBuffer, Pool, itemsize
from .ort_cuda_checks import FP8_CAPABILITY, PROVIDER, check_device, check_nodes, check_provider
from .ort_session import check_ports, check_version, failure, first_line

ONNX_TYPES = {
    **{"float32": 1, "float16": 10, "bfloat16": 16, "float8e4m3fn": 17},
    **{"uint8": 2, "int8": 3, "int32": 6, "int64": 7},
}
"""Numbers of onnx.TensorProto.DataType."""

NO_GRAPH = -1
CAPTURED_TOKENS = 8
"""Tokens of the longest runs that are captured: a step's, and those of the forced answer behind a reflection."""
MAX_GRAPHS = 16
"""Captured graphs that are kept, those lately used; each holds some MB."""

QUIET = 4  # only "fatal" is logged: failures come back as exceptions, which we word ourselves


def _device_buffer(buffer: Buffer) -> DeviceBuffer:
    if not isinstance(buffer, DeviceBuffer):
        raise TypeError(f"a {type(buffer).__name__} is not this engine's")
    return buffer


class OrtCudaGraph:
    """One session with its binding."""

    def __init__(
        self, session: ort.InferenceSession, name: str, weights: Mapping[str, DeviceBuffer] = MappingProxyType({})
    ) -> None:
        """`weights` are inputs that stay the same: those that several sessions read."""
        self._session, self._name, self._weights = session, name, weights
        self._binding = self._new_binding()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from bound inputs into bound outputs."""
        self._bind(self._binding, inputs, outputs)
        self._run(self._binding, NO_GRAPH)

    def row_bytes(self) -> int:
        """Bytes of intermediate values for each row of a run; 0 where the file does not say."""
        count = self._session.get_modelmeta().custom_metadata_map.get(ROW_BYTES, "0")
        return int(count) if count.isdecimal() else 0

    def _new_binding(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        self._bind(binding, self._weights, {})
        return binding

    def _bind(self, binding: ort.IOBinding, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers.items():
                found = _device_buffer(buffer)
                bind(name, "cuda", 0, ONNX_TYPES[found.dtype], found.shape, found.address)

    def _run(self, binding: ort.IOBinding, graph_id: int) -> None:
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise failure(self._name, error) from error


class StepGraph:
    """A captured run: its number, its binding, and the fixed buffers that it reads and writes."""

    def __init__(self, number: int, binding: ort.IOBinding, inputs: dict[str, DeviceBuffer], hidden: DeviceBuffer):
        self.number, self.binding, self.inputs, self.hidden = number, binding, inputs, hidden


@dataclass(frozen=True)
class LongRuns:
    """The decoder's form for runs of `tokens` or more, over the same weights."""

    graph: OrtCudaGraph
    tokens: int


class OrtCudaDecoder(OrtCudaGraph):
    """The decoder: runs of one token are captured once for each KV cache, then replayed; long runs may have a form."""

    def __init__(
        self,
        session: ort.InferenceSession,
        engine: OrtCudaEngine,
        weights: Mapping[str, DeviceBuffer] = MappingProxyType({}),
        long: LongRuns | None = None,
    ) -> None:
        super().__init__(session, contract.DECODER, weights)
        self._engine, self._long = engine, long
        self._steps: OrderedDict[Hashable, StepGraph] = OrderedDict()
        self._captured = 0

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from bound inputs into bound outputs."""
        tokens = inputs["embeddings"].shape[1]
        if self._long and tokens >= self._long.tokens:
            self._long.graph.run(inputs, outputs)
            return
        if tokens > CAPTURED_TOKENS:
            super().run(inputs, outputs)
            return
        step = self._step(inputs)
        for name, fixed in step.inputs.items():
            self._engine.move(_device_buffer(inputs[name]), fixed)
        self._run(step.binding, step.number)
        self._engine.move(step.hidden, _device_buffer(outputs["hidden_post_norm"]))

    def row_bytes(self) -> int:
        """Of the form that takes more."""
        return max(super().row_bytes(), self._long.graph.row_bytes() if self._long else 0)

    def _step(self, inputs: Mapping[str, Buffer]) -> StepGraph:
        """The graph for this KV cache and so many tokens; a new one is captured by its first run."""
        caches = {name: _device_buffer(buffer) for name, buffer in inputs.items() if "_cache." in name}
        tokens = inputs["embeddings"].shape[1]
        key = (tokens, *((buffer.address, buffer.shape) for buffer in caches.values()))
        if key not in self._steps:
            self._steps[key] = self._new_step(inputs, caches)
            if len(self._steps) > MAX_GRAPHS:
                _, oldest = self._steps.popitem(last=False)
                self._session.release_captured_graph(oldest.number)
        self._steps.move_to_end(key)
        return self._steps[key]

    def _new_step(self, inputs: Mapping[str, Buffer], caches: Mapping[str, DeviceBuffer]) -> StepGraph:
        small = {name: _device_buffer(buffer) for name, buffer in inputs.items() if name not in caches}
        fixed = {name: self._engine.buffer(buffer.shape, buffer.dtype) for name, buffer in small.items()}
        hidden = self._engine.buffer(small["embeddings"].shape, small["embeddings"].dtype)
        binding = self._new_binding()
        updated = {cache_output(name): buffer for name, buffer in caches.items()}
        self._bind(binding, fixed | dict(caches), {"hidden_post_norm": hidden, **updated})
        self._captured += 1
        return StepGraph(self._captured, binding, fixed, hidden)


class OrtCudaEngine:
    """ONNX Runtime's CUDA provider on one GPU."""

    device = "cuda"
    cache_capacities: tuple[int, ...] = ()
    text_apart = False

    def __init__(self, bundle: Bundle, index: int = 0) -> None:
        """Raises CompatibilityError (no CUDA build, driver, GPU, or another target's bundle) and ResourceError."""
        manifest = bundle.manifest
        check_provider(bundle)
        check_version(manifest.engine.get("onnxruntime", "0"), "onnxruntime-gpu")
        self._gpu = Gpu(index)
        check_device(self._gpu.facts())
        self._pool = Pool(self._gpu)
        self._float = manifest.activation
        self.activation = bfloat16.DTYPE if self._float == "bfloat16" else np.dtype(self._float)
        self._check_room(bundle)
        self._graphs = {name: self._open(bundle, name, entry) for name, entry in manifest.graphs.items()}
        row = RowBytes(*(self._graphs[name].row_bytes() for name in (contract.DECODER, contract.VISION)))
        runs = plan_runs(row, self._gpu.free_bytes())
        self.chunk_tokens, self.vision_patches = runs.tokens, runs.patches

    @property
    def allocations(self) -> int:
        """How often device memory was asked for outside ONNX Runtime so far; it stays once all sizes were met."""
        return self._pool.allocations

    def graph(self, name: str) -> OrtCudaGraph:
        """A graph by its name in the contract."""
        return self._graphs[name]

    def empty(self, shape: Sequence[int], dtype: str = FLOAT) -> DeviceBuffer:
        """A buffer of zeros of a type of the contract. Raises ResourceError.

        Attention reads keys and values behind the filled rows and multiplies them by 0: they must not be NaN, which
        whatever the memory held before may spell.
        """
        buffer = self.buffer(shape, self._float if dtype == FLOAT else dtype)
        self._gpu.clear(buffer.address, buffer.nbytes)
        return buffer

    def buffer(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """An uninitialised buffer of any type. Raises ResourceError."""
        block = self._pool.take(prod(shape) * itemsize(dtype))
        return DeviceBuffer(block, 0, tuple(shape), dtype)

    def upload(self, array: Array) -> DeviceBuffer:
        """The array on the device; floats in the activation type."""
        if array.dtype.kind == "f":
            array = bfloat16.from_float32(array) if self._float == "bfloat16" else array.astype(self.activation)
            target = self.empty(array.shape)
        else:
            target = self.buffer(array.shape, array.dtype.name)
        array = np.ascontiguousarray(array)
        self._gpu.upload(array.ctypes.data, target.address, array.nbytes)
        return target

    def download(self, buffer: Buffer) -> Array:
        """The buffer on the host; floats as float32."""
        source = _device_buffer(buffer)
        array = np.empty(source.shape, np.uint16 if source.dtype == "bfloat16" else source.dtype)
        self._gpu.download(source.address, array.ctypes.data, array.nbytes)
        if source.dtype == "bfloat16":
            return bfloat16.to_float32(array)
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy a [1, H, R, d] buffer over the first R rows of a [1, H, C, d] one."""
        old, new = _device_buffer(source), _device_buffer(target)
        heads = old.shape[1]
        pitches = (old.nbytes // heads, new.nbytes // heads)
        self._gpu.copy_pieces(old.address, new.address, pitches[0], pitches, heads)

    def move(self, source: DeviceBuffer, target: DeviceBuffer) -> None:
        """Copy a whole buffer into one of the same size."""
        self._gpu.copy(source.address, target.address, source.nbytes)

    def free_bytes(self) -> int:
        """Memory that can be had on the device now."""
        return self._pool.free_bytes()

    def release(self) -> None:
        """Give memory that no buffer uses back to the GPU, where ONNX Runtime finds it."""
        self._pool.release()

    def _check_room(self, bundle: Bundle) -> None:
        weights = sum(entry.size for name, entry in bundle.manifest.files.items() if name.endswith(".data"))
        free = self._gpu.free_bytes()
        if weights > free:
            raise ResourceError(
                f"the weights need {weights / 1e6:.0f} MB on the GPU, {free / 1e6:.0f} MB are free; "
                "stop what else runs there, or export with --precision int4"
            )

    def _open(self, bundle: Bundle, name: str, entry: GraphEntry) -> OrtCudaGraph:
        weights = {weight.name: self._load(bundle, weight) for weight in entry.weights}
        capture = name == contract.DECODER
        session = self._session(bundle, name, entry, capture)
        if not capture:
            return OrtCudaGraph(session, name, weights)
        return OrtCudaDecoder(session, self, weights, self._open_long(bundle, name, entry, weights))

    def _open_long(
        self, bundle: Bundle, name: str, entry: GraphEntry, weights: Mapping[str, DeviceBuffer]
    ) -> LongRuns | None:
        """The form for long runs, where the bundle has one and the GPU its instructions."""
        form = entry.long_form
        if form is None or self._gpu.facts().capability < FP8_CAPABILITY:
            return None
        session = self._session(bundle, name, replace(entry, file=form.file), capture=False)
        return LongRuns(OrtCudaGraph(session, name, weights), form.tokens)

    def _load(self, bundle: Bundle, weight: StoredWeight) -> DeviceBuffer:
        """A weight's bytes, from its file to the device."""
        target = self.buffer(weight.shape, weight.dtype)
        source = np.memmap(bundle.file(weight.file), np.uint8, "r", weight.offset, weight.nbytes)
        self._gpu.upload(source.ctypes.data, target.address, weight.nbytes)
        return target

    def _session(self, bundle: Bundle, name: str, entry: GraphEntry, capture: bool) -> ort.InferenceSession:
        session = _session(bundle.file(entry.file), self._provider_options(capture))
        check_nodes(session, name)
        check_ports(session, name, entry.file_signature(), bundle.manifest.activation)
        return session

    def _provider_options(self, capture: bool) -> dict[str, str]:
        return {
            "device_id": "0",
            "user_compute_stream": str(self._gpu.stream),
            "arena_extend_strategy": "kSameAsRequested",  # doubling would waste up to half of what is free
            "enable_cuda_graph": "1" if capture else "0",
        }


def _session(file: Path, provider: dict[str, str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.enable_mem_pattern = False  # shapes change from run to run
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        return ort.InferenceSession(str(file), options, providers=[(PROVIDER, provider)])
    except Exception as error:  # ONNX Runtime's own exception types are not public
        text = first_line(error)
        if "alloc" in text.lower() or "memory" in text.lower():
            raise ResourceError(
                f"{file.name} does not fit the GPU ({text}); stop what else runs there, or export with --precision int4"
            ) from error
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {file.name}: {text}; export the bundle again"
        ) from error
