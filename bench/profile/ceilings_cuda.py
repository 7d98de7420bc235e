"""The ceilings of a GPU, through ONNX Runtime's CUDA provider over the engine's own buffers (see `ceilings.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import onnxruntime as ort

from ...runtime.engines.device_memory import DeviceBuffer, itemsize
from ...runtime.engines.onnxruntime_cuda import OrtCudaEngine
from ...runtime.engines.ort_cuda_checks import PROVIDER
from ...runtime.engines.ort_cuda_graph import OrtCudaGraph
from ...runtime.engines.ort_session import failure
from .ceilings import QUIET, ROUNDS, one_operator, result_shape
from .report import Ceilings

SIDE = 8192  # of the square matrices: 1.1 TFLOP a product, a millisecond and more on the fastest GPU
COPY_BYTES = 2**30  # many times the largest second-level cache


def measure_cuda_ceilings(engine: OrtCudaEngine, element: str) -> Ceilings:
    """The GPU's ceilings in the element type of activations. Takes 3 GB of its memory, or less where less is free.

    No bundle for CUDA has products of integers (docs/cuda.md): their ceiling is 0. Raises ReflectRTError.
    """
    try:
        return _measure(engine, element)
    finally:
        engine.release()


def _measure(engine: OrtCudaEngine, element: str) -> Ceilings:
    copied = min(COPY_BYTES, engine.free_bytes() // 8)
    flat = engine.buffer((copied // 4,), "float32")
    rows = copied // itemsize(element) // SIDE
    draw = np.random.default_rng(0).standard_normal
    matrices = [engine.upload(draw((SIDE, SIDE), np.float32)) for _ in range(2)]  # zeros would let the GPU clock up
    return Ceilings(
        float_ops_per_s=2 * SIDE**3 / _best(engine, "MatMul", matrices),
        integer_ops_per_s=0.0,
        copy_bytes_per_s=2 * flat.nbytes / _best(engine, "Neg", [flat]),
        read_bytes_per_s=rows
        * SIDE
        * itemsize(element)
        / _best(engine, "MatMul", [engine.zeros((1, rows)), engine.zeros((rows, SIDE))]),
        element=element,
        side=SIDE,
        copied_bytes=flat.nbytes,
    )


def _best(engine: OrtCudaEngine, op: str, inputs: Sequence[DeviceBuffer]) -> float:
    """Shortest time of one operator in seconds; a run is done when it returns."""
    dtype = inputs[0].dtype
    result = engine.buffer(result_shape(op, [buffer.shape for buffer in inputs]), dtype)
    model = one_operator(op, [(buffer.dtype, buffer.shape) for buffer in inputs], (dtype, result.shape))
    graph = OrtCudaGraph(_session(model, op), op)
    bound = {f"in{number}": buffer for number, buffer in enumerate(inputs)}
    engine.download(result.view((1,)))  # what was queued before is not to be timed
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        graph.run(bound, {"out": result})
        seconds.append(perf_counter() - start)
    return min(seconds)


def _session(model: bytes, op: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    try:
        return ort.InferenceSession(model, options, providers=[(PROVIDER, {"device_id": "0"})])
    except Exception as error:  # ONNX Runtime's own exception types are not public
        raise failure(op, error) from error
