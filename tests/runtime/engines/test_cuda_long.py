"""A long run with fp8 MLPs: which work it queues, in which order, over whose weights."""

from dataclasses import replace
from typing import Any

import pytest
from fakes import FACTS, make_manifest
from kernel_fakes import FakeGpu, FakeNvrtc
from reflectrt.runtime.engines import cuda_long, cuda_steps
from reflectrt.runtime.engines.cuda_long import LongRuns
from reflectrt.runtime.engines.cuda_products import Operands, Shape
from reflectrt.runtime.engines.cuda_steps import StepKernels
from reflectrt.runtime.engines.device_memory import DeviceBuffer
from reflectrt.runtime.manifest import LongForm, StepForm, StepLayer, StepLinear

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, TOKENS = 2, 256, 4, 2, 64, 512, 3000
MODEL = replace(FACTS, layers=LAYERS, hidden=HIDDEN, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
LONG = LongForm("long.onnx", 2048, ((0.5, 2.0), (0.25, 4.0)))


def layer(index: int) -> StepLayer:
    qkv, output, gate, up, down = (
        StepLinear(f"{index}.{name}", f"{index}.{name}.scales") for name in ("qkv", "o", "gate", "up", "down")
    )
    return StepLayer(f"{index}.n", qkv, f"{index}.b", output, f"{index}.m", gate, up, down, ())


def weights(gpu: FakeGpu) -> dict[str, DeviceBuffer]:
    rows = {"qkv": (HEADS + 2 * KV_HEADS) * HEAD_DIM, "o": HIDDEN, "gate": INNER, "up": INNER, "down": HIDDEN}
    found = {"norm": gpu.buffer((HIDDEN,))}
    for index in range(LAYERS):
        for name, count in rows.items():
            found[f"{index}.{name}"] = gpu.buffer((count, INNER if name == "down" else HIDDEN), "float8e4m3fn")
            found[f"{index}.{name}.scales"] = gpu.buffer((count, 1), "float32")
        found |= {f"{index}.{name}": gpu.buffer((HIDDEN,)) for name in "nm"} | {f"{index}.b": gpu.buffer((512,))}
    return found


class Products:
    """What was multiplied."""

    def __init__(self, gpu: FakeGpu, pool: FakeGpu) -> None:  # noqa: ARG002
        self.log: list[tuple[str, Any, Any]] = []

    def multiply(self, shape: Shape, operands: Operands) -> None:
        self.log.append(("product", shape, operands))


class Attention:
    """A layer's attention that remembers what was bound."""

    def __init__(self, log: list[Any], index: int) -> None:
        self.log, self.index = log, index

    def queue(self, inputs: dict[str, DeviceBuffer], outputs: dict[str, DeviceBuffer]) -> None:
        self.log.append((f"attention {self.index}", dict(inputs), dict(outputs)))

    def row_bytes(self) -> int:
        return 100


def long_run(monkeypatch: pytest.MonkeyPatch) -> tuple[LongRuns, FakeGpu, dict[str, DeviceBuffer], list[Any]]:
    for module in (cuda_steps, cuda_long):
        monkeypatch.setattr(module, "Nvrtc", FakeNvrtc)
    monkeypatch.setattr(cuda_long, "Fp8Products", Products)
    gpu, manifest = FakeGpu(), replace(make_manifest(), model=MODEL, activation="bfloat16")
    found = weights(gpu)
    form = StepForm(HEADS, 1e-6, 1e6, (8, 12, 12), tuple(layer(index) for index in range(LAYERS)), "norm")
    kernels = StepKernels(gpu, gpu, manifest, form, found)  # type: ignore[arg-type]
    log: list[Any] = []
    attention = [Attention(log, index) for index in range(LAYERS)]
    return LongRuns(gpu, gpu, manifest, (form, LONG), kernels, attention), gpu, found, log  # type: ignore[arg-type]


def ports(gpu: FakeGpu) -> tuple[dict[str, DeviceBuffer], dict[str, DeviceBuffer]]:
    cache = (1, KV_HEADS, 4096, HEAD_DIM)
    caches = {f"{kind}_cache.{index}": gpu.buffer(cache) for index in range(LAYERS) for kind in ("key", "value")}
    inputs = {
        "embeddings": gpu.buffer((1, TOKENS, HIDDEN)),
        "positions": gpu.buffer((3, TOKENS), "int64"),
        "past_length": gpu.buffer((1,), "int64"),
    }
    return inputs | caches, {"hidden_post_norm": gpu.buffer((1, TOKENS, HIDDEN))}


def test_each_layer_attends_over_its_own_cache_and_reads_what_the_one_before_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, gpu, _, log = long_run(monkeypatch)
    inputs, outputs = ports(gpu)
    run.run(inputs, outputs)
    (_, first, gave), (_, second, _) = log
    assert first["embeddings"] is inputs["embeddings"]
    assert second["embeddings"] is gave["residual"]
    for index, (_, given, taken) in enumerate(log):
        for kind in ("key", "value"):
            own = inputs[f"{kind}_cache.{index}"]
            assert given[f"{kind}_cache.0"] is own and taken[f"{kind}_cache_out.0"] is own


def test_an_mlp_rounds_by_the_manifest_s_steps_and_adds_to_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    run, gpu, found, log = long_run(monkeypatch)
    inputs, outputs = ports(gpu)
    run.run(inputs, outputs)
    assert [name for name, _, _ in gpu.launched] == ["round_rows", "inner_rows"] * LAYERS + ["norm_rows"]
    rounds = [arguments.by for name, _, arguments in gpu.launched if name != "norm_rows"]
    assert rounds == [1 / 0.5, 1 / 2.0, 1 / 0.25, 1 / 4.0]
    products = run._products.log  # type: ignore[attr-defined]
    assert [shape for _, shape, _ in products] == LAYERS * [
        Shape(TOKENS, HIDDEN, INNER, 2 * INNER),
        Shape(TOKENS, HIDDEN, INNER, 2 * INNER),
        Shape(TOKENS, INNER, HIDDEN, HIDDEN, added=True),
    ]
    names = [f"{index}.{name}" for index in range(LAYERS) for name in ("gate", "up", "down")]
    assert [operands.weight for _, _, operands in products] == [found[name].address for name in names]
    assert [operands.weight_step for _, _, operands in products] == [found[f"{n}.scales"].address for n in names]
    gate, up, down = (operands for _, _, operands in products[:3])
    assert up.out - gate.out == 2 * INNER and gate.x == up.x
    assert down.out == log[0][2]["residual"].address
    assert all(operands.x_step % 16 == 0 for _, _, operands in products)  # else cuBLASLt refuses it
    norm = gpu.launched[-1][2]
    assert norm.x == products[-1][2].out and norm.out == outputs["hidden_post_norm"].address


def test_memory_for_a_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run, *_ = long_run(monkeypatch)
    assert run.row_bytes() == 100 + 7 * HIDDEN + 5 * INNER
