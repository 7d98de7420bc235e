"""The engine over ONNX Runtime: every input and output is bound to a buffer, so nothing is copied between graphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..bundle import Bundle
from ..contract import FLOAT
from ..engine import Array, Buffer
from ..errors import BundleError, CompatibilityError, ResourceError
from ..manifest import GraphEntry
from ..memory import available_bytes
from .ort_session import check_ports, check_version, failure, first_line

QUIET = 4  # only "fatal" is logged: failures come back as exceptions, which we word ourselves


@dataclass(frozen=True)
class HostBuffer:
    """A numpy array as a buffer."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.array.shape

    def view(self, shape: Sequence[int], offset: int = 0) -> HostBuffer:
        """The same memory from element `offset` on, seen as `shape`; no copy."""
        return HostBuffer(self.array.reshape(-1)[offset : offset + prod(shape)].reshape(shape))


def _array(buffer: Buffer) -> Array:
    if not isinstance(buffer, HostBuffer):
        raise TypeError(f"a {type(buffer).__name__} is not this engine's")
    return buffer.array


class OrtGraph:
    """One session with its binding."""

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session, self._name = session, name
        self._binding = session.io_binding()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from bound inputs into bound outputs."""
        bind = self._binding
        for name, buffer in inputs.items():
            array = _array(buffer)
            bind.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, buffer in outputs.items():
            array = _array(buffer)
            bind.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(bind)
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise failure(self._name, error) from error

    def end_profiling(self) -> Path:
        """The file that the session wrote its operators' times to."""
        return Path(self._session.end_profiling())


class OrtCpuEngine:
    """ONNX Runtime's CPU provider."""

    device = "cpu"
    chunk_tokens = 512  # keeps two cores in large matrix products
    vision_patches = 4096
    cache_capacities: tuple[int, ...] = ()
    text_apart = False

    def __init__(self, bundle: Bundle, threads: int | None = None, operator_times: Path | None = None) -> None:
        """`operator_times` is a folder for ONNX Runtime's own profiles of every graph, see `end_profiling`."""
        manifest = bundle.manifest
        if manifest.target != "cpu":
            raise CompatibilityError(
                f"{bundle.path} was exported for {manifest.target}, this device is a CPU; export with --target cpu"
            )
        if manifest.activation not in ("float32", "float16"):
            raise CompatibilityError(
                f"{bundle.path} computes in {manifest.activation}, which the CPU engine does not; export it in fp32"
            )
        check_version(manifest.engine.get("onnxruntime", "0"))
        self.activation = np.dtype(manifest.activation)
        threads = threads or len(os.sched_getaffinity(0))
        self._graphs = {
            name: self._load(bundle, name, entry, _options(threads, operator_times and operator_times / name))
            for name, entry in manifest.graphs.items()
        }

    def _load(self, bundle: Bundle, name: str, entry: GraphEntry, options: ort.SessionOptions) -> OrtGraph:
        return OrtGraph(_open(bundle, name, entry, options), name)

    def graph(self, name: str) -> OrtGraph:
        """A graph by its name in the contract."""
        return self._graphs[name]

    def end_profiling(self) -> dict[str, Path]:
        """ONNX Runtime's profile of each graph so far (JSON files), where the engine was opened to write them."""
        return {name: graph.end_profiling() for name, graph in self._graphs.items()}

    def empty(self, shape: Sequence[int], dtype: str = FLOAT) -> HostBuffer:
        """An uninitialised buffer of a type of the contract. Raises ResourceError."""
        return self._buffer(np.empty, shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str = FLOAT) -> HostBuffer:
        """A buffer of zeros, whose memory the system gives where it is written first. Raises ResourceError."""
        return self._buffer(np.zeros, shape, dtype)

    def _buffer(self, make: Callable[..., Array], shape: Sequence[int], dtype: str) -> HostBuffer:
        element = self.activation if dtype == FLOAT else np.dtype(dtype)
        try:
            return HostBuffer(make(shape, element))
        except MemoryError:
            need = prod(shape) * element.itemsize
            raise ResourceError(
                f"no memory for {need / 1e6:.0f} MB; use a smaller --max-frames or --max-pixels"
            ) from None

    def upload(self, array: Array) -> HostBuffer:
        """The array as it lies in host memory."""
        return HostBuffer(np.ascontiguousarray(array))

    def download(self, buffer: Buffer) -> Array:
        """The buffer as an array; floats as float32."""
        array = _array(buffer)
        return array.astype(np.float32) if array.dtype.kind == "f" else array.copy()

    def copy(self, source: Buffer, target: Buffer) -> None:
        """Copy a [1, H, R, d] buffer over the first R rows of a [1, H, C, d] one."""
        _array(target)[:, :, : source.shape[2]] = _array(source)

    def wait(self) -> None:
        """Nothing: every run is done when it returns."""

    def free_bytes(self) -> int:
        """Memory that this process may still take."""
        return available_bytes()


def _options(threads: int, profile: Path | None = None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if profile:
        options.enable_profiling = True
        # ONNX Runtime adds the time in whole seconds: graphs opened in the same one must not share a file.
        options.profile_file_prefix = str(profile)
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    # Shapes change from run to run (chunks, steps): a pattern planned for one shape only costs memory for the next.
    options.enable_mem_pattern = False
    return options


def _open(bundle: Bundle, name: str, entry: GraphEntry, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(str(bundle.file(entry.file)), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types are not public
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {entry.file}: {first_line(error)}; export the bundle again"
        ) from error
    check_ports(session, name, entry.signature(), bundle.manifest.activation)
    return session
