"""One graph of ONNX Runtime's CUDA provider with its binding: it reads and writes device memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnxruntime as ort

from ..engine import Buffer
from .cuda_runs import ROW_BYTES
from .device_memory import DeviceBuffer, device_buffer
from .ort_session import failure

ONNX_TYPES = {
    **{"float32": 1, "float16": 10, "bfloat16": 16, "float8e4m3fn": 17},
    **{"uint8": 2, "int8": 3, "int32": 6, "int64": 7},
}
"""Numbers of onnx.TensorProto.DataType."""

GRAPH = "gpu_graph_id"
NO_GRAPH = MappingProxyType({GRAPH: "-1"})


def device_buffers(ports: Mapping[str, Buffer]) -> dict[str, DeviceBuffer]:
    """Buffers of this engine by name."""
    return {name: device_buffer(buffer) for name, buffer in ports.items()}


class OrtCudaGraph:
    """One session with its binding."""

    def __init__(
        self, session: ort.InferenceSession, name: str, weights: Mapping[str, DeviceBuffer] = MappingProxyType({})
    ) -> None:
        """`weights` are inputs that stay the same: those that several sessions read."""
        self._session, self._name, self._weights = session, name, weights
        self._binding = self.new_binding()

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run from bound inputs into bound outputs."""
        self.bind(self._binding, inputs, outputs)
        self.run_bound(self._binding)

    def queue(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """The same without waiting until it is done."""
        self.bind(self._binding, inputs, outputs)
        self.run_bound(self._binding, {**NO_GRAPH, "disable_synchronize_execution_providers": "1"})

    def row_bytes(self) -> int:
        """Bytes of intermediate values for each row of a run; 0 where the file does not say."""
        count = self._session.get_modelmeta().custom_metadata_map.get(ROW_BYTES, "0")
        return int(count) if count.isdecimal() else 0

    def new_binding(self) -> ort.IOBinding:
        """A binding of the weights alone."""
        binding = self._session.io_binding()
        self.bind(binding, self._weights, {})
        return binding

    def bind(self, binding: ort.IOBinding, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Bind more."""
        for bind, buffers in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, buffer in buffers.items():
                found = device_buffer(buffer)
                bind(name, "cuda", 0, ONNX_TYPES[found.dtype], found.shape, found.address)

    def run_bound(self, binding: ort.IOBinding, entries: Mapping[str, str] = NO_GRAPH) -> None:
        """Run what is bound; `entries` are options of the run."""
        options = ort.RunOptions()
        for entry in entries.items():
            options.add_run_config_entry(*entry)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise failure(self._name, error) from error
