import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reflectrt.runtime.engines import bfloat16
from reflectrt.runtime.engines import cuda_decoder as cuda
from reflectrt.runtime.engines import ort_cuda_graph as graphs
from reflectrt.runtime.engines.device_memory import Block, DeviceBuffer, HeldBlock, itemsize
from reflectrt.runtime.engines.onnxruntime_cuda import OrtCudaEngine
from reflectrt.runtime.errors import ResourceError
from reflectrt.runtime.kernels.arguments import Mail
from reflectrt.runtime.manifest import StepLayer, StepLinear, StoredWeight

NO_GRAPH = -1


class FakeBinding:
    def __init__(self) -> None:
        self.bound: dict[str, int] = {}

    def bind_input(self, name: str, device: str, index: int, kind: int, shape: Any, address: int) -> None:  # noqa: ARG002
        assert (device, index) == ("cuda", 0)
        types = {"positions": "int64", "past_length": "int64", "weight": "float8e4m3fn"}
        assert kind == graphs.ONNX_TYPES[types.get(name, "bfloat16")]
        self.bound[name] = address

    bind_output = bind_input


class FakeSession:
    """Remembers which graph number ran with which addresses."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, dict[str, int]]] = []
        self.released: list[int] = []
        self.error = ""

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding: FakeBinding, options: Any) -> None:
        if self.error:
            raise RuntimeError(self.error)
        self.runs.append((int(options.get_run_config_entry(graphs.GRAPH)), dict(binding.bound)))

    def release_captured_graph(self, number: int) -> None:
        self.released.append(number)


class FakeEngine:
    """Gives out addresses and remembers what was moved."""

    def __init__(self) -> None:
        self.next = 1000
        self.moves: list[tuple[int, int]] = []
        self.written: list[tuple[int, Mail]] = []

    def buffer(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        self.next += 1000
        return DeviceBuffer(Block(self.next, 1000), 0, tuple(shape), dtype)

    def move(self, source: DeviceBuffer, target: DeviceBuffer) -> None:
        assert source.nbytes == target.nbytes
        self.moves.append((source.address, target.address))

    def write(self, target: DeviceBuffer, numbers: Mail) -> None:
        assert target.nbytes == ctypes.sizeof(numbers)
        self.written.append((target.address, numbers))

    def download(self, buffer: DeviceBuffer) -> Any:
        return np.zeros(buffer.shape, np.int64)


def decoder() -> tuple[cuda.OrtCudaDecoder, FakeSession, FakeEngine]:
    session, engine = FakeSession(), FakeEngine()
    return cuda.OrtCudaDecoder(session, engine), session, engine  # type: ignore[arg-type]


def buffers(engine: FakeEngine, tokens: int, caches: dict[str, DeviceBuffer]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {
        "embeddings": engine.buffer((1, tokens, 4), "bfloat16"),
        "positions": engine.buffer((3, tokens), "int64"),
        "past_length": engine.buffer((1,), "int64"),
        **caches,
    }
    updated = {name.replace("cache", "cache_out"): buffer for name, buffer in caches.items()}
    return inputs, {"hidden_post_norm": engine.buffer((1, tokens, 4), "bfloat16"), **updated}


def kv(engine: FakeEngine) -> dict[str, DeviceBuffer]:
    return {name: engine.buffer((1, 1, 256, 2), "bfloat16") for name in ("key_cache.0", "value_cache.0")}


def test_long_runs_are_bound_as_they_are() -> None:
    graph, session, engine = decoder()
    inputs, outputs = buffers(engine, cuda.MAX_TOKENS + 1, kv(engine))
    graph.run(inputs, outputs)
    ((number, bound),) = session.runs
    assert number == NO_GRAPH
    assert bound == {name: buffer.address for name, buffer in {**inputs, **outputs}.items()}
    assert engine.moves == []


class FakeLong:
    """The form for long runs."""

    tokens = 64

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def run(self, inputs: dict[str, DeviceBuffer], outputs: dict[str, DeviceBuffer]) -> None:  # noqa: ARG002
        self.lengths.append(inputs["embeddings"].shape[1])


class FakeKernels:
    """Steps by kernels of our own: what was captured, and how often it ran."""

    most_tokens = 8

    def __init__(self) -> None:
        self.captured: list[dict[str, int]] = []
        self.replays = 0

    def capture(self, tokens: int, mail: int, caches: dict[str, DeviceBuffer]) -> "FakeKernels":
        self.captured.append({"tokens": tokens, "mail": mail} | {name: cache.address for name, cache in caches.items()})
        return self

    def replay(self) -> None:
        self.replays += 1


def test_a_run_takes_the_form_of_its_length() -> None:
    engine, session, long, kernels = FakeEngine(), FakeSession(), FakeLong(), FakeKernels()
    weights = {"weight": engine.buffer((16, 4), "float8e4m3fn")}
    graph = cuda.OrtCudaDecoder(session, engine, weights, long, kernels)  # type: ignore[arg-type]
    caches = kv(engine)
    for tokens in (1, 8, 9, 63, 64, 65, 1):
        graph.run(*buffers(engine, tokens, caches))
    assert [number for number, _ in session.runs] == [NO_GRAPH, NO_GRAPH]  # of 9 and 63
    assert {bound["weight"] for _, bound in session.runs} == {weights["weight"].address}
    assert long.lengths == [64, 65]
    assert len(kernels.captured) == 2 and kernels.replays == 3
    assert kernels.captured[0]["key_cache.0"] == caches["key_cache.0"].address


def test_our_own_steps_find_what_changes_in_their_mail() -> None:
    """Numbers that are on the host still go in it, and nowhere else."""
    engine, kernels = FakeEngine(), FakeKernels()
    graph = cuda.OrtCudaDecoder(FakeSession(), engine, {}, None, kernels)  # type: ignore[arg-type]
    caches = kv(engine)
    for past in (41, 43):
        inputs, outputs = buffers(engine, 2, caches)
        inputs["past_length"] = held([past])
        inputs["positions"] = held([[7, 8], [5, 5], [9, past]])
        graph.run(inputs, outputs)
        place, mail = engine.written[-1]
        assert (place, mail.past_length) == (kernels.captured[0]["mail"], past)
        assert mail.embeddings == inputs["embeddings"].address
        assert mail.hidden_post_norm == outputs["hidden_post_norm"].address
        assert list(mail.positions)[:6] == [7, 8, 5, 5, 9, past]
    assert (len(kernels.captured), kernels.replays, engine.moves) == (1, 2, [])


def held(numbers: list[Any]) -> DeviceBuffer:
    """Integers that must not be sent to the device."""
    array = np.array(numbers, dtype=np.int64)
    return DeviceBuffer(HeldBlock(array, lambda _: pytest.fail("sent")), 0, array.shape, "int64")  # type: ignore[arg-type]


def test_what_is_held_is_sent_once_when_its_address_is_asked_for() -> None:
    sent: list[Any] = []

    def send(array: Any) -> Block:
        sent.append(array)
        return Block(4096, array.nbytes)

    block = HeldBlock(np.arange(3), send)
    buffer = DeviceBuffer(block, 0, (3,), "int64")
    assert (buffer.nbytes, sent) == (24, [])
    assert buffer.address == buffer.address == 4096
    assert len(sent) == 1


def test_a_step_replays_one_graph_whose_addresses_never_change() -> None:
    graph, session, engine = decoder()
    caches = kv(engine)
    calls = [buffers(engine, 1, caches) for _ in range(3)]
    for inputs, outputs in calls:
        graph.run(inputs, outputs)
    numbers, bound = zip(*session.runs, strict=True)
    assert set(numbers) == {1}
    assert bound[0] == bound[1] == bound[2]
    inputs, outputs = calls[2]
    fixed = bound[2]
    assert engine.moves[-4:] == [
        (inputs["embeddings"].address, fixed["embeddings"]),
        (inputs["positions"].address, fixed["positions"]),
        (inputs["past_length"].address, fixed["past_length"]),
        (fixed["hidden_post_norm"], outputs["hidden_post_norm"].address),
    ]
    assert fixed["key_cache.0"] == fixed["key_cache_out.0"] == caches["key_cache.0"].address


def test_every_cache_and_length_has_its_graph_and_old_ones_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, session, engine = decoder()
    caches = kv(engine)
    monkeypatch.setattr(cuda, "MAX_TOKENS", 8)
    for tokens in (1, 7, 1, 7):
        graph.run(*buffers(engine, tokens, caches))
    assert [number for number, _ in session.runs] == [1, 2, 1, 2]
    for _ in range(cuda.MAX_GRAPHS - 1):
        graph.run(*buffers(engine, 1, kv(engine)))
    assert session.released == [1]
    graph.run(*buffers(engine, 1, caches))
    assert session.runs[-1][0] == cuda.MAX_GRAPHS + 2


def test_a_full_gpu_names_the_setting() -> None:
    graph, session, engine = decoder()
    session.error = "Failed to allocate memory for requested buffer of size 1073741824\nmore"
    with pytest.raises(ResourceError, match=r"no memory left in decoder .*--max-frames"):
        graph.run(*buffers(engine, 9, kv(engine)))


def test_element_sizes_are_those_of_the_types_that_are_bound() -> None:
    for name in graphs.ONNX_TYPES:
        known = ml_dtypes.float8_e4m3fn if name == "float8e4m3fn" else getattr(ml_dtypes, name, name)
        assert itemsize(name) == np.dtype(known).itemsize


class FakeGpu:
    """Remembers what was uploaded."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.cleared: list[int] = []

    def upload(self, host: int, device: int, size: int) -> None:
        assert device
        self.sent.append(ctypes.string_at(host, size))

    def clear(self, device: int, size: int) -> None:
        assert device
        self.cleared.append(size)


class FakePool:
    """Blocks that are nowhere."""

    def buffer(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return DeviceBuffer(Block(1 << 20, 1), 0, tuple(shape), dtype)


def engine_on(gpu: FakeGpu) -> OrtCudaEngine:
    engine = object.__new__(OrtCudaEngine)
    engine._gpu, engine._pool = gpu, FakePool()  # type: ignore[assignment]
    engine._float, engine.activation = "bfloat16", bfloat16.DTYPE
    return engine


def test_few_integers_go_to_the_device_when_their_address_is_asked_for() -> None:
    gpu = FakeGpu()
    engine, array = engine_on(gpu), np.arange(6, dtype=np.int64).reshape(3, 2)
    buffer = engine.upload(array)
    array[:] = 0  # it is the engine's copy that goes
    assert (buffer.shape, buffer.dtype, gpu.sent) == ((3, 2), "int64", [])
    assert buffer.address and gpu.sent == [np.arange(6, dtype=np.int64).tobytes()]
    engine.upload(np.zeros((3, 100), np.int64))
    engine.upload(np.zeros(4, np.float32))
    assert [len(sent) for sent in gpu.sent] == [48, 2400, 8]


def test_only_buffers_that_are_to_be_zeros_are_cleared() -> None:
    gpu = FakeGpu()
    engine = engine_on(gpu)
    engine.empty((2, 3))
    assert gpu.cleared == []
    engine.zeros((2, 3), "int8")
    assert gpu.cleared == [6]


def test_scales_of_one_product_are_taken_once_a_row_together_or_not_at_all(tmp_path: Path) -> None:
    """Else gate and up would want kernels of two kinds."""
    qkv, gate, up, down = (StepLinear(name, f"{name}.s") for name in ("qkv", "gate", "up", "down"))
    layer = StepLayer("n", qkv, "b", StepLinear("o", None), "m", gate, up, down, ())
    even = np.repeat(np.arange(4, dtype=np.uint16)[:, None], 3, axis=1)
    odd = np.arange(12, dtype=np.uint16).reshape(4, 3)
    stored = {"qkv.s": even, "gate.s": even, "up.s": odd, "down.s": odd}
    (tmp_path / "data").write_bytes(b"".join(array.tobytes() for array in stored.values()))
    weights = tuple(StoredWeight(name, "bfloat16", (4, 3), "data", 24 * index) for index, name in enumerate(stored))
    gpu = FakeGpu()
    bundle, entry = SimpleNamespace(file=lambda name: tmp_path / name), SimpleNamespace(weights=weights)
    form = SimpleNamespace(layers=(layer,))
    found = dict(engine_on(gpu)._scales_by_row(bundle, entry, form))  # type: ignore[arg-type]
    assert {name: buffer.shape for name, buffer in found.items()} == {"qkv.s": (4, 1)}
    assert gpu.sent == [np.arange(4, dtype=np.uint16).tobytes()]
