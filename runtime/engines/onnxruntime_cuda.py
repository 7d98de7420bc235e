"""The engine over ONNX Runtime's CUDA provider and kernels of our own: everything stays in device memory.

All work is on one stream. What is queued later runs later, whoever queued it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .. import contract
from ..bundle import Bundle
from ..contract import FLOAT, Port, Signature
from ..engine import Array, Buffer
from ..errors import BundleError, ResourceError
from ..manifest import GraphEntry, StepForm, StoredWeight, VisionForm
from . import bfloat16
from .cuda_decoder import OrtCudaDecoder
from .cuda_kernels import KernelGpu
from .cuda_long import LongRuns
from .cuda_matrices import one_a_row
from .cuda_runs import RowBytes, plan_runs
from .cuda_steps import StepKernels
from .cuda_vision import VisionSegments
from .device_memory import DeviceBuffer, HeldBlock, Pool, device_buffer, itemsize
from .ort_cuda_checks import FP8_CAPABILITY, PROVIDER, check_device, check_nodes, check_provider
from .ort_cuda_graph import OrtCudaGraph
from .ort_session import check_ports, check_version, first_line

CudaGraph = OrtCudaGraph | VisionSegments
Buffers = Mapping[str, DeviceBuffer]

HELD_BYTES = 256
"""Integers that a step has in its `Mail`: a copy of their own would cost it more time than they do."""
QUIET = 4  # only "fatal" is logged: failures come back as exceptions, which we word ourselves


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
        self._gpu = KernelGpu(index)
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

    def graph(self, name: str) -> CudaGraph:
        """A graph by its name in the contract."""
        return self._graphs[name]

    def empty(self, shape: Sequence[int], dtype: str = FLOAT) -> DeviceBuffer:
        """An uninitialised buffer of a type of the contract. Raises ResourceError."""
        return self.buffer(shape, self._float if dtype == FLOAT else dtype)

    def zeros(self, shape: Sequence[int], dtype: str = FLOAT) -> DeviceBuffer:
        """A buffer of zeros. Raises ResourceError."""
        buffer = self.empty(shape, dtype)
        self._gpu.clear(buffer.address, buffer.nbytes)
        return buffer

    def buffer(self, shape: Sequence[int], dtype: str) -> DeviceBuffer:
        """An uninitialised buffer of any type. Raises ResourceError."""
        return self._pool.buffer(shape, dtype)

    def upload(self, array: Array) -> DeviceBuffer:
        """The array on the device, a few integers once their address is asked for; floats in the activation type."""
        if array.dtype.kind == "f":
            array = bfloat16.from_float32(array) if self._float == "bfloat16" else array.astype(self.activation)
            return self._send(np.ascontiguousarray(array), self._float)
        if array.nbytes <= HELD_BYTES:
            held = HeldBlock(array.copy(), lambda array: self._send(array, array.dtype.name).block)
            return DeviceBuffer(held, 0, array.shape, array.dtype.name)
        return self._send(np.ascontiguousarray(array), array.dtype.name)

    def _send(self, array: Array, dtype: str) -> DeviceBuffer:
        target = self.buffer(array.shape, dtype)
        self._gpu.upload(array.ctypes.data, target.address, array.nbytes)
        return target

    def write(self, target: DeviceBuffer, numbers: ctypes.Structure) -> None:
        """Put a structure into a buffer on the device."""
        self._gpu.upload(ctypes.addressof(numbers), target.address, ctypes.sizeof(numbers))

    def download(self, buffer: Buffer) -> Array:
        """The buffer on the host; floats as float32."""
        source = device_buffer(buffer)
        array = np.empty(source.shape, np.uint16 if source.dtype == "bfloat16" else source.dtype)
        self._gpu.download(source.address, array.ctypes.data, array.nbytes)
        if source.dtype == "bfloat16":
            return bfloat16.to_float32(array)
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy a [1, H, R, d] buffer over the first R rows of a [1, H, C, d] one."""
        old, new = device_buffer(source), device_buffer(target)
        heads = old.shape[1]
        pitches = (old.nbytes // heads, new.nbytes // heads)
        self._gpu.copy_pieces(old.address, new.address, pitches[0], pitches, heads)

    def move(self, source: DeviceBuffer, target: DeviceBuffer) -> None:
        """Copy a whole buffer into one of the same size."""
        self._gpu.copy(source.address, target.address, source.nbytes)

    def wait(self) -> None:
        """Until everything queued is done."""
        self._gpu.wait()

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

    def _open(self, bundle: Bundle, name: str, entry: GraphEntry) -> CudaGraph:
        weights = {weight.name: self._load(bundle, weight) for weight in entry.weights}
        if entry.block_form is not None:
            return self._open_segments(bundle, entry, entry.block_form, weights)
        if name != contract.DECODER:
            return OrtCudaGraph(self._session(bundle, name, entry), name, weights)
        kernels = self._step_kernels(bundle, entry, weights)
        session = self._session(bundle, name, entry, capture=kernels is None)
        long = self._long_runs(bundle, entry, weights, kernels) if kernels else None
        return OrtCudaDecoder(session, self, weights, long, kernels)

    def _open_segments(self, bundle: Bundle, entry: GraphEntry, form: VisionForm, weights: Buffers) -> VisionSegments:
        """The vision encoder in segments around our own attention."""
        own = [{port: weights[name] for port, name in zip(form.inputs, names, strict=True)} for names in form.blocks]
        ports = contract.vision_segments(entry.signature(), form.heads, form.head_dim)
        start, block, end = (
            self._part(bundle, file, ports[name], bound)
            for file, name, bound in (
                (form.start, contract.VISION_START, {}),
                (form.block, contract.VISION_BLOCK, own[0]),
                (form.end, contract.VISION_END, {}),
            )
        )
        ends = (OrtCudaGraph(start, form.start), OrtCudaGraph(end, form.end))
        blocks = [OrtCudaGraph(block, form.block, bound) for bound in own]
        return VisionSegments(self._gpu, self._pool, bundle.manifest.activation, form, ends, blocks)

    def _step_kernels(self, bundle: Bundle, entry: GraphEntry, weights: Buffers) -> StepKernels | None:
        """Our own kernels for steps, where the bundle says what they need and the GPU has their instructions."""
        rounds = bundle.manifest.model.cache_dtype == "float8e4m3fn"
        if entry.step_form is None or (rounds and self._gpu.facts().capability < FP8_CAPABILITY):
            return None
        by_row = dict(self._scales_by_row(bundle, entry, entry.step_form))
        return StepKernels(self._gpu, self._pool, bundle.manifest, entry.step_form, {**weights, **by_row})

    def _scales_by_row(self, bundle: Bundle, entry: GraphEntry, form: StepForm) -> Iterator[tuple[str, DeviceBuffer]]:
        """Scales [out, 1] of matrices whose every row has but one, which ONNX Runtime wants repeated for each block.

        Kernels then multiply by it once a row, not once a block: a step in int8 takes 2.42 ms for 2.50 (7B, H200).
        """
        stored = {weight.name: weight for weight in entry.weights}
        for together in (group for layer in form.layers for group in layer.products()):
            weights = [stored[linear.scales] for linear in together if linear.scales in stored]
            columns = [one_a_row(_stored(bundle, weight)) for weight in weights]
            for weight, column in zip(weights, columns, strict=True):
                if column is not None and all(other is not None for other in columns):
                    yield weight.name, self._send(column, weight.dtype)

    def _long_runs(
        self, bundle: Bundle, entry: GraphEntry, weights: Buffers, kernels: StepKernels
    ) -> LongRuns | None:  # fmt: skip
        """Long runs with fp8 products, where the bundle has them and the GPU too."""
        form, steps = entry.long_form, entry.step_form
        if form is None or steps is None or self._gpu.facts().capability < FP8_CAPABILITY:
            return None
        self._check_one_scale(bundle, entry, steps)
        first = steps.layers[0].names()
        session = _session(bundle.file(form.file), self._provider_options(capture=False))
        read = {port.name for port in session.get_inputs()}
        own = [
            {port: weights[name] for port, name in zip(first, layer.names(), strict=True) if port in read}
            for layer in steps.layers
        ]
        self._check_part(session, form.file, contract.layer_attention(entry.signature()), own[0])
        attention = [OrtCudaGraph(session, form.file, bound) for bound in own]
        return LongRuns(self._gpu, self._pool, bundle.manifest, (steps, form), kernels, attention)

    def _check_one_scale(self, bundle: Bundle, entry: GraphEntry, steps: StepForm) -> None:
        """cuBLASLt multiplies a whole matrix by its first scale: all of an MLP's must be that."""
        stored = {weight.name: weight for weight in entry.weights}
        for linear in (linear for layer in steps.layers for linear in (layer.gate, layer.up, layer.down)):
            weight = stored.get(linear.scales or "")
            found = None if weight is None or weight.dtype != "float32" else _stored(bundle, weight)
            if found is None or not found.size or (found != found.flat[0]).any():
                raise BundleError(f"{linear.weight} has not one scale for all of it; export the bundle again")

    def _part(self, bundle: Bundle, file: str, wanted: Signature, weights: Buffers) -> ort.InferenceSession:
        """A graph that is part of one of the contract's, whose weights are inputs behind those."""
        session = _session(bundle.file(file), self._provider_options(capture=False))
        self._check_part(session, file, wanted, weights)
        return session

    def _check_part(self, session: ort.InferenceSession, file: str, wanted: Signature, weights: Buffers) -> None:
        check_nodes(session, file)
        bound = (Port(name, buffer.shape, buffer.dtype) for name, buffer in weights.items())
        check_ports(session, file, replace(wanted, inputs=(*wanted.inputs, *bound)), self._float)

    def _load(self, bundle: Bundle, weight: StoredWeight) -> DeviceBuffer:
        """A weight's bytes, from its file to the device."""
        target = self.buffer(weight.shape, weight.dtype)
        source = np.memmap(bundle.file(weight.file), np.uint8, "r", weight.offset, weight.nbytes)
        self._gpu.upload(source.ctypes.data, target.address, weight.nbytes)
        return target

    def _session(self, bundle: Bundle, name: str, entry: GraphEntry, capture: bool = False) -> ort.InferenceSession:
        session = _session(bundle.file(entry.file), self._provider_options(capture))
        check_nodes(session, name)
        read = {port.name for port in session.get_inputs()}
        unread = {weight.name for weight in entry.weights} - read
        wanted = entry.file_signature()
        inputs = tuple(port for port in wanted.inputs if port.name not in unread)
        check_ports(session, name, replace(wanted, inputs=inputs), bundle.manifest.activation)
        return session

    def _provider_options(self, capture: bool) -> dict[str, str]:
        return {
            "device_id": "0",
            "user_compute_stream": str(self._gpu.stream),
            "arena_extend_strategy": "kSameAsRequested",  # doubling would waste up to half of what is free
            "enable_cuda_graph": "1" if capture else "0",
        }


def _stored(bundle: Bundle, weight: StoredWeight) -> Array:
    """A weight as its file has it: float32, or the bytes of each number of another type as an integer."""
    kind = np.float32 if weight.dtype == "float32" else f"u{itemsize(weight.dtype)}"
    return np.memmap(bundle.file(weight.file), kind, "r", weight.offset, weight.shape)


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
