"""What the CPU can do at most through the engine's own library: a large matrix product, a large copy.

Both are ONNX graphs in ONNX Runtime with as many threads as the bundle gets. A decoding step reads weights and writes
next to nothing, which is faster than copying on most memories, so reading a large matrix once is measured beside the
copy and the faster of the two is the ceiling of bytes. Ceilings are the best of several runs, not their median.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from ...runtime.engine import Array
from ...runtime.memory import available_bytes
from .report import Ceilings

SIDE = 2048  # of the square matrices: 17 GFLOP a product, far from any fixed cost
COPY_BYTES = 256 * 2**20  # eight times the largest last-level cache slice of a server CPU, so that memory is measured
ROUNDS = 5
OPSET = 21
QUIET = 4  # only "fatal" is logged

Tensor = tuple[str, tuple[int, ...]]
"""Element type and shape."""


def measure_ceilings(threads: int, side: int = SIDE, copy_bytes: int = COPY_BYTES) -> Ceilings:
    """The CPU's ceilings with so many threads; takes about two seconds and three times `copy_bytes` of memory."""
    copy_bytes = min(copy_bytes, max(2**20, available_bytes() // 8))
    numbers = np.random.default_rng(0)
    left, right = (numbers.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    ops = 2 * side**3
    bytes_left, bytes_right = left.view(np.uint8)[:, :side].copy(), right.view(np.int8)[:, :side].copy()
    flat = np.ones(copy_bytes // 4, np.float32)
    rows = flat.size // side
    return Ceilings(
        float_ops_per_s=ops / _best("MatMul", [left, right], threads),
        integer_ops_per_s=ops / _best("MatMulInteger", [bytes_left, bytes_right], threads),
        copy_bytes_per_s=2 * flat.nbytes / _best("Neg", [flat], threads),
        read_bytes_per_s=rows
        * side
        * 4
        / _best("MatMul", [np.ones((1, rows), np.float32), flat[: rows * side].reshape(rows, side)], threads),
        element="float32",
        side=side,
        copied_bytes=flat.nbytes,
    )


def _best(op: str, arrays: Sequence[Array], threads: int) -> float:
    """Shortest time of one operator in seconds, inputs and output bound so that nothing else is copied."""
    session = _session(op, arrays, threads)
    binding = session.io_binding()
    for number, array in enumerate(arrays):
        binding.bind_input(f"in{number}", "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    shape = result_shape(op, [array.shape for array in arrays])
    result = np.empty(shape, np.int32 if op == "MatMulInteger" else np.float32)
    binding.bind_output("out", "cpu", 0, result.dtype, result.shape, result.ctypes.data)
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(perf_counter() - start)
    return min(seconds)


def result_shape(op: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Of an element-wise operator, or of a product of two matrices."""
    return shapes[0] if op == "Neg" else (shapes[0][0], shapes[1][1])


def _session(op: str, arrays: Sequence[Array], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = QUIET
    result = "int32" if op == "MatMulInteger" else "float32"
    inputs = [(array.dtype.name, array.shape) for array in arrays]
    model = one_operator(op, inputs, (result, result_shape(op, [array.shape for array in arrays])))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def one_operator(op: str, inputs: Sequence[Tensor], output: Tensor) -> bytes:
    """An ONNX model of one operator that reads in0, in1, ... and writes out."""
    ports = [_port(f"in{number}", tensor) for number, tensor in enumerate(inputs)]
    node = helper.make_node(op, [port.name for port in ports], ["out"])
    graph = helper.make_graph([node], op, ports, [_port("out", output)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _port(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    dtype, shape = tensor
    kind = {"float32": "FLOAT"}.get(dtype, dtype.upper())
    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), shape)
