"""The TensorRT engine against a library and a driver that only take notes: nothing here runs on a GPU.

What is bound where, which profile takes a run, what is recorded and replayed, and what is refused before it runs.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fakes import make_manifest
from reflectrt.runtime.bundle import Bundle
from reflectrt.runtime.contract import Port, Signature, cache_output, signatures
from reflectrt.runtime.engines.device_memory import Block, DeviceBuffer
from reflectrt.runtime.engines.tensorrt_graphs import TensorRTDecoder, TensorRTGraph, TensorRTVision
from reflectrt.runtime.engines.tensorrt_library import Library
from reflectrt.runtime.engines.tensorrt_loading import check_engine, limit_weights, load_plan
from reflectrt.runtime.errors import BundleError, CompatibilityError, LimitError, ResourceError
from reflectrt.runtime.memory_plan import check_fits, plan_engines, resident_share, without_streamed
from reflectrt.runtime.plans import EnginePlan

MODEL = make_manifest().model
SIGNATURES = signatures(MODEL.sizes())
DECODER = EnginePlan(
    graph="decoder",
    file="decoder.plan",
    library="tensorrt",
    version="10.16.1.11",
    version_compatible=False,
    architecture="SM87",
    cuda="13",
    capacity=512,
    profiles=({"tokens": (1, 1, 64)}, {"tokens": (1, 64, 64)}),
    weight_bytes=1000,
    scratch_bytes=(30, 20),
)
VISION = replace(
    DECODER,
    graph="vision",
    capacity=0,
    profiles=(
        {"grids": (1, 4, 4), "patches": (4, 64, 64), "windows": (1, 4, 8)},
        {"grids": (1, 1, 1), "patches": (4, 256, 256), "windows": (1, 8, 16)},
    ),
)


class Context:
    """An execution context that notes what is bound."""

    def __init__(self, profile: int, log: list[Any]) -> None:
        self.profile, self.log = profile, log
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.log.append(("run", self.profile, dict(self.shapes), dict(self.addresses), stream))
        return True


class FakeGpu:
    stream = 77

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def copy(self, source: int, target: int, size: int) -> None:
        self.log.append(("copy", source, target, size))

    def wait(self) -> None:
        self.log.append("wait")

    def capture(self, queue: Callable[[], None]) -> Any:
        self.log.append("capture")
        queue()
        return SimpleNamespace(replay=lambda: self.log.append("replay"))


class FakeHost:
    """What graphs ask of their engine."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gpu: Any = FakeGpu(self.log)
        self.next = 1000

    def new_context(self, loaded: Any, profile: int) -> Context:
        del loaded
        return Context(profile, self.log)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        self.next += 1_000_000
        return DeviceBuffer(Block(self.next, 0), 0, tuple(shape), dtype)

    def load(self, plan: EnginePlan) -> TensorRTGraph:
        self.log.append(("load", plan.capacity))
        return TensorRTGraph(self, plan, None, SIGNATURES[plan.graph])

    def runs(self) -> list[Any]:
        return [entry for entry in self.log if entry[0] == "run"]


def decoder_buffers(host: FakeHost, tokens: int, rows: int = 512) -> tuple[dict[str, Any], dict[str, Any]]:
    caches = {
        port.name: host.buffer((1, MODEL.kv_heads, rows, MODEL.head_dim), "float16")
        for port in SIGNATURES["decoder"].inputs
        if "_cache." in port.name
    }
    return step_buffers(host, tokens, caches)


def step_buffers(host: FakeHost, tokens: int, caches: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {
        "embeddings": host.buffer((1, tokens, MODEL.hidden), "float16"),
        "positions": host.buffer((3, tokens), "int64"),
        "past_length": host.buffer((1,), "int64"),
        **caches,
    }
    hidden = host.buffer((1, tokens, MODEL.hidden), "float16")
    return inputs, {"hidden_post_norm": hidden, **{cache_output(name): b for name, b in caches.items()}}


def test_the_first_profile_that_takes_a_run_runs_it_with_caches_in_place() -> None:
    host = FakeHost()
    inputs, outputs = decoder_buffers(host, tokens=20)
    TensorRTDecoder(host, [DECODER]).run(inputs, outputs)
    ((_, profile, shapes, addresses, stream),) = host.runs()
    assert (profile, stream) == (0, 77) and shapes["embeddings"] == (1, 20, MODEL.hidden)
    assert addresses["key_cache.0"] == addresses["key_cache_out.0"] == inputs["key_cache.0"].address


def test_a_step_is_recorded_once_a_cache_and_replayed_through_fixed_buffers() -> None:
    host = FakeHost()
    decoder = TensorRTDecoder(host, [DECODER])
    inputs, outputs = decoder_buffers(host, tokens=1)
    caches = {name: buffer for name, buffer in inputs.items() if "_cache." in name}
    decoder.run(inputs, outputs)
    for _ in range(3):
        again, results = step_buffers(host, 1, caches)
        decoder.run(again, results)
    assert host.log.count("capture") == 1 and host.log.count("replay") == 4
    bound = host.runs()[0][3]
    assert bound["embeddings"] != inputs["embeddings"].address
    last_in, last_out = [entry for entry in host.log if entry[0] == "copy"][-4::3]
    assert last_in[1:3] == (again["embeddings"].address, bound["embeddings"])
    assert last_out[1:3] == (bound["hidden_post_norm"], results["hidden_post_norm"].address)


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_run_is_done_when_it_returns(tokens: int) -> None:
    """A recorded step too; a wait while it is recorded would end the recording."""
    host = FakeHost()
    TensorRTDecoder(host, [DECODER]).run(*decoder_buffers(host, tokens))
    assert host.log[-1] == "wait" and host.log.count("wait") == 1


def test_another_capacity_loads_its_plan_and_forgets_recorded_steps() -> None:
    host = FakeHost()
    decoder = TensorRTDecoder(host, [DECODER, replace(DECODER, capacity=1024)])
    for rows in (512, 512, 1024):
        decoder.run(*decoder_buffers(host, tokens=1, rows=rows))
    assert [entry for entry in host.log if entry[0] == "load"] == [("load", 512), ("load", 1024)]


def vision_buffers(host: FakeHost, grids: int, patches: int) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {
        "patches": host.buffer((grids, patches, 12), "uint8"),
        "patch_positions": host.buffer((patches, 2), "int64"),
        "windows": host.buffer((2, MODEL.window**2), "int64"),
        "window_slots": host.buffer((patches,), "int64"),
    }
    return inputs, {"embeddings": host.buffer((grids, patches // 4, MODEL.hidden), "float16")}


def test_a_large_batch_of_grids_goes_in_pieces() -> None:
    host = FakeHost()
    inputs, outputs = vision_buffers(host, grids=10, patches=64)
    TensorRTVision(host.load(VISION)).run(inputs, outputs)
    first = [(run[2]["patches"][0], run[3]["patches"] - inputs["patches"].address) for run in host.runs()]
    assert first == [(4, 0), (4, 4 * 64 * 12), (2, 8 * 64 * 12)]
    written = [run[3]["embeddings"] - outputs["embeddings"].address for run in host.runs()]
    assert written == [0, 4 * 16 * MODEL.hidden * 2, 8 * 16 * MODEL.hidden * 2]


def test_a_large_grid_takes_the_other_profile_and_too_large_a_one_names_the_option() -> None:
    host = FakeHost()
    vision = TensorRTVision(host.load(VISION))
    vision.run(*vision_buffers(host, grids=2, patches=256))
    assert [run[1] for run in host.runs()] == [1, 1]
    with pytest.raises(LimitError, match=r"patches 260.*--max-pixels.*--max-patches"):
        vision.run(*vision_buffers(host, grids=1, patches=260))


class FakeEngine:
    """A deserialised engine with these ports."""

    num_optimization_profiles = 2

    def __init__(self, signature: Signature, alias: bool = True) -> None:
        self.ports = {port.name: port for port in (*signature.inputs, *signature.outputs)}
        self.alias, self.num_io_tensors = alias, len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes = [512 if axis == "capacity" else axis for axis in self.ports[name].axes]
        return tuple(-1 if isinstance(axis, str) else axis for axis in axes)

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"float": "HALF", "int64": "INT64", "uint8": "UINT8"}
        return SimpleNamespace(name=names[self.ports[name].dtype])

    def get_aliased_input_tensor(self, name: str) -> str:
        return name.replace("_out.", ".") if self.alias and "_out." in name else ""


def test_an_engine_is_held_against_the_contract() -> None:
    signature = SIGNATURES["decoder"]
    check_engine(FakeEngine(signature), DECODER, signature, "float16")
    more = Signature((*signature.inputs, Port("extra", (1,), "int64")), signature.outputs)
    for engine, complaint in (
        (FakeEngine(more), "'extra'"),
        (FakeEngine(signature, alias=False), "copies key_cache.0"),
    ):
        with pytest.raises(BundleError, match=complaint):
            check_engine(engine, DECODER, signature, "float16")
    with pytest.raises(BundleError, match=r"embeddings as HALF.*not BF16"):
        check_engine(FakeEngine(signature), DECODER, signature, "bfloat16")
    with pytest.raises(BundleError, match=r"key_cache.0 .*512"):
        check_engine(FakeEngine(signature), replace(DECODER, capacity=1024), signature, "float16")


def library(reason: str) -> Library:
    """A library that loads nothing, and says why."""

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def log(self, level: Any, text: str) -> None:
            raise NotImplementedError

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: Any) -> None:
            assert bytes(data[:4]) == b"plan"
            self.logger.log(1, reason)

    module: Any = ModuleType("tensorrt")
    module.ILogger, module.Runtime = Logger, Runtime
    return Library("tensorrt", module, "10.16.1.11")


@pytest.mark.parametrize(
    ("reason", "kind", "cure"),
    [
        ("Version tag does not match", CompatibilityError, "run `reflectrt build BUNDLE` here"),
        ("CUDA out of memory", ResourceError, "export in int4"),
    ],
)
def test_a_plan_that_does_not_load_says_why(tmp_path: Path, reason: str, kind: type[Exception], cure: str) -> None:
    (tmp_path / "decoder.plan").write_bytes(b"plan" * 8)
    with pytest.raises(kind, match=reason) as caught:
        load_plan(library(reason), tmp_path / "decoder.plan", DECODER)
    assert cure in str(caught.value)


def test_memory_is_planned_from_the_plans_and_refused_with_its_parts() -> None:
    plan = plan_engines(MODEL, [DECODER, VISION])
    assert (plan.weights, plan.scratch) == (2000, 30)
    assert plan.cache == 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * 2 * 512
    assert plan.total > plan.cache + 2030
    check_fits(plan, plan.total)
    with pytest.raises(ResourceError, match=r"weights .*KV cache .*--capacity"):
        check_fits(plan, plan.total - 1)


def test_weights_are_streamed_only_where_they_do_not_fit_and_a_plan_allows_it() -> None:
    large = replace(DECODER, weight_bytes=4 * 10**9)
    streaming = replace(large, weight_streaming=True)
    whole = plan_engines(MODEL, [large, VISION])
    short = whole.total - 10**9
    assert resident_share(whole, [streaming, VISION], whole.total) == 1
    assert resident_share(whole, [large, VISION], short) == 1
    share = resident_share(whole, [streaming, VISION], short)
    assert 0.5 < share < 0.75
    check_fits(without_streamed(whole, [streaming, VISION], share), short)
    with pytest.raises(ResourceError, match="--weight-streaming"):
        check_fits(without_streamed(whole, [large, VISION], 1), short)
    assert resident_share(whole, [streaming, VISION], 0) == 0


@pytest.mark.parametrize(("streams", "budget"), [(True, 250), (False, None)])
def test_the_share_of_the_weights_is_set_on_a_plan_that_streams(streams: bool, budget: int | None) -> None:
    engine = SimpleNamespace(streamable_weights_size=1000, weight_streaming_budget_v2=None)
    limit_weights(engine, replace(DECODER, weight_streaming=streams), 0.25)
    assert engine.weight_streaming_budget_v2 == budget


def test_without_a_gpu_or_with_another_target_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from reflectrt.runtime.engines.tensorrt import TensorRTEngine

    with pytest.raises(CompatibilityError, match="--target tensorrt"):
        TensorRTEngine(Bundle(Path("bundle"), make_manifest(), "0"))

    def no_driver(name: str) -> Any:
        raise OSError(name)

    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(CompatibilityError, match=r"driver|GPU"):
        TensorRTEngine(Bundle(Path("bundle"), replace(make_manifest(), target="tensorrt-rtx"), "0"))


def test_caches_come_in_the_capacities_that_were_built() -> None:
    from fakes import FakeEngine as HostEngine
    from reflectrt.runtime.cache import KVCache

    engine = HostEngine()
    engine.cache_capacities = (300, 700)
    cache = KVCache(engine, MODEL, 200)
    assert cache.capacity == 300
    cache.length = 250
    cache.reserve(100)
    assert cache.capacity == 700
    with pytest.raises(LimitError, match="--capacity 900"):
        cache.reserve(650)
