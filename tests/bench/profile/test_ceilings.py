"""Ceilings: what is computed and moved, over the time it took; the GPU's against stand-ins, for there is none here."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from reflectrt.bench.profile import ceilings_cuda, measure
from reflectrt.bench.profile.ceilings import measure_ceilings, one_operator
from reflectrt.bench.profile.ceilings_cuda import measure_cuda_ceilings
from reflectrt.bench.profile.report import Ceilings
from reflectrt.runtime.engines.device_memory import Block, DeviceBuffer
from reflectrt.runtime.errors import ResourceError


def test_the_cpu_has_ceilings() -> None:
    found = measure_ceilings(threads=1, side=128, copy_bytes=2**20)
    assert min(found.float_ops_per_s, found.integer_ops_per_s, found.copy_bytes_per_s, found.read_bytes_per_s) > 1e6


def test_a_model_of_one_operator_runs() -> None:
    model = one_operator("MatMul", [("float16", (2, 3)), ("float16", (3, 4))], ("float16", (2, 4)))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    ones = {"in0": np.ones((2, 3), np.float16), "in1": np.ones((3, 4), np.float16)}
    assert (session.run(None, ones)[0] == 3).all()


def test_of_two_measurements_the_higher_rates_are_taken() -> None:
    first, second = Ceilings(5.0, 1.0, 2.0, 3.0, "float32", 8, 9), Ceilings(4.0, 2.0, 2.0, 4.0, "float32", 8, 9)
    assert first.best(second) == Ceilings(5.0, 2.0, 2.0, 4.0, "float32", 8, 9)
    assert first.best(None) == first


class StandIn:
    """A GPU's buffers without memory behind them."""

    def __init__(self, free: int = 2**40) -> None:
        self.free, self.released = free, False

    def free_bytes(self) -> int:
        return self.free

    def release(self) -> None:
        self.released = True

    def buffer(self, shape: Any, dtype: str) -> DeviceBuffer:
        if 4 * np.prod(shape) > self.free:
            raise ResourceError("no room; buy some")
        return DeviceBuffer(Block(0, 0), 0, tuple(shape), dtype)

    def zeros(self, shape: Any) -> DeviceBuffer:
        return self.buffer(shape, "bfloat16")

    def upload(self, array: Any) -> DeviceBuffer:
        return self.zeros(array.shape)

    def download(self, buffer: DeviceBuffer) -> None:
        assert buffer.shape == (1,)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a second each, of small matrices."""
    clock = iter(range(1000))
    monkeypatch.setattr(ceilings_cuda, "SIDE", 64)
    monkeypatch.setattr(ceilings_cuda, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(ceilings_cuda, "_session", lambda model, op: (model, op))
    monkeypatch.setattr(ceilings_cuda, "OrtCudaGraph", lambda *_: SimpleNamespace(run=lambda *_: None))


@pytest.mark.usefixtures("_small")
def test_a_gpu_s_are_in_the_type_of_its_activations() -> None:
    engine: Any = StandIn()
    found = measure_cuda_ceilings(engine, "bfloat16")
    assert found.float_ops_per_s == 2 * 64**3  # in one second
    assert found.copy_bytes_per_s == 2 * 2**30  # read and written
    assert found.read_bytes_per_s == 2**30
    assert (found.element, found.integer_ops_per_s) == ("bfloat16", 0)
    assert engine.released  # ONNX Runtime has memory of its own


@pytest.mark.usefixtures("_small")
def test_a_gpu_without_room_for_them_is_profiled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "OrtCudaEngine", StandIn)
    engine: Any = StandIn(free=1000)
    engine.device = "cuda"
    manifest = SimpleNamespace(target="cuda", activation="bfloat16")
    model: Any = SimpleNamespace(engine=engine, manifest=manifest)
    plan: Any = SimpleNamespace(threads=1)
    found, notes = measure._ceilings(model, plan, lambda _: None)
    assert found is None and "no room" in notes[-1] and "operators" in notes[0]
