"""Which kernels a step launches, over which memory; their numbers are compared on a GPU (`tests/parity`)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FACTS, make_manifest
from kernel_fakes import PROCESSORS, FakeGpu, FakeNvrtc
from reflectrt.runtime.engines import cuda_steps
from reflectrt.runtime.engines.cuda_matrices import one_a_row
from reflectrt.runtime.engines.cuda_steps import StepKernels
from reflectrt.runtime.engines.device_memory import DeviceBuffer
from reflectrt.runtime.engines.step_blocks import MAX_TOKENS
from reflectrt.runtime.errors import BundleError
from reflectrt.runtime.kernels.arguments import Mail
from reflectrt.runtime.manifest import StepForm, StepLayer, StepLinear

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, CAPACITY = 2, 256, 4, 2, 64, 512, 1024
MODEL = replace(FACTS, layers=LAYERS, hidden=HIDDEN, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
A_LAYER = ["product<0, 0, 0>", "attention", "product<0, 0, 1>", "product<0, 0, 2>", "product<0, 0, 1>"]


def layer(index: int, quantized: str = "") -> StepLayer:
    def linear(name: str) -> StepLinear:
        return StepLinear(f"{index}.{name}", f"{index}.{name}.scales" if name in quantized.split() else None)

    matrices = (linear(name) for name in ("gate", "up", "down"))
    return StepLayer(f"{index}.n", linear("qkv"), f"{index}.b", linear("o"), f"{index}.m", *matrices, ())


def weights(gpu: FakeGpu) -> dict[str, DeviceBuffer]:
    rows = {"qkv": (HEADS + 2 * KV_HEADS) * HEAD_DIM, "o": HIDDEN, "gate": INNER, "up": INNER, "down": HIDDEN}
    found = {"norm": gpu.buffer((HIDDEN,))}
    for index in range(LAYERS):
        for name, count in rows.items():
            found[f"{index}.{name}"] = gpu.buffer((count, INNER if name == "down" else HIDDEN))
        found |= {f"{index}.{name}": gpu.buffer((HIDDEN,)) for name in "nm"}
        found[f"{index}.b"] = gpu.buffer((rows["qkv"],))
    return found


def steps(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, form: StepForm, found: dict[str, DeviceBuffer]) -> StepKernels:
    monkeypatch.setattr(cuda_steps, "Nvrtc", FakeNvrtc)
    manifest = replace(make_manifest(), model=MODEL, activation="bfloat16")
    return StepKernels(gpu, gpu, manifest, form, found)  # type: ignore[arg-type]


FORM = StepForm(HEADS, 1e-6, 1e6, (8, 12, 12), tuple(layer(index) for index in range(LAYERS)), "norm")


MAIL = 4096


def caches(gpu: FakeGpu) -> dict[str, DeviceBuffer]:
    cache = (1, KV_HEADS, CAPACITY, HEAD_DIM)
    return {f"{kind}_cache.{index}": gpu.buffer(cache) for index in range(LAYERS) for kind in ("key", "value")}


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_step_is_five_kernels_a_layer_over_its_own_weights_and_cache(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    gpu = FakeGpu()
    found = weights(gpu)
    given = caches(gpu)
    steps(gpu, monkeypatch, FORM, found).capture(tokens, MAIL, given)
    assert [name for name, _, _ in gpu.launched] == ["begin", *A_LAYER * LAYERS, "finish"]
    arguments = [arguments for _, _, arguments in gpu.launched]
    assert arguments[0].mail == arguments[-1].mail == MAIL
    for index in range(LAYERS):
        qkv, attention, output, gate_up, down = arguments[1 + 5 * index : 6 + 5 * index]
        assert qkv.weight[0] == found[f"{index}.qkv"].address and qkv.bias == found[f"{index}.b"].address
        cache = [given[f"{kind}_cache.{index}"].address for kind in ("key", "value")]
        assert list(qkv.cache) == list(attention.cache) == cache
        assert qkv.past_length == attention.past_length == MAIL + Mail.past_length.offset
        assert qkv.capacity == attention.capacity == CAPACITY
        assert list(gate_up.weight) == [found[f"{index}.{name}"].address for name in ("gate", "up")]
        assert (output.inputs, down.inputs) == (HEADS * HEAD_DIM, INNER)
        assert attention.queries == qkv.out and output.x == attention.out and down.x == gate_up.out


def test_every_row_has_a_block_and_long_caches_one_for_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    steps(gpu, monkeypatch, FORM, weights(gpu)).capture(1, MAIL, caches(gpu))
    products = [(how, arguments) for name, how, arguments in gpu.launched if name.startswith("product")][:4]
    pairs = [arguments.pairs for _, arguments in products]
    assert pairs == [(HEADS + 2 * KV_HEADS) * HEAD_DIM // 2, HIDDEN // 2, INNER, HIDDEN // 2]
    for how, arguments in products:
        assert how.grid[0] % PROCESSORS == 0 and 1 <= arguments.of_tile <= 8
    attention = next(how for name, how, _ in gpu.launched if name == "attention")
    assert attention.grid == (PROCESSORS, 1, 1)


def test_a_cache_that_attention_would_read_past_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    odd = caches(gpu) | {"key_cache.0": gpu.buffer((1, KV_HEADS, CAPACITY + 8, HEAD_DIM))}
    with pytest.raises(ValueError, match="1032 rows is no multiple of 16"):
        steps(gpu, monkeypatch, FORM, weights(gpu)).capture(1, MAIL, odd)
    assert not gpu.launched


def test_only_the_first_kernel_waits_for_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    steps(gpu, monkeypatch, FORM, weights(gpu)).capture(1, MAIL, caches(gpu))
    assert [how.early for _, how, _ in gpu.launched] == [False] + [True] * (5 * LAYERS + 1)


def test_what_every_answer_needs_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    kernels = steps(gpu, monkeypatch, FORM, weights(gpu))
    asked: list[Any] = kernels._programs._compiler.asked  # type: ignore[attr-defined]
    prefix = make_manifest().prompt.answer_prefix
    assert {macros["TOKENS"] for macros in asked} == {1, min(1 + len(prefix), MAX_TOKENS)}
    assert asked[0]["EPSILON"] == "1e-06f" and asked[0]["BF16"] == 1 and asked[0]["CACHE"] == 0


def test_eight_bits_with_one_scale_a_row_are_scaled_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = np.repeat(np.arange(1, 7, dtype=np.uint16)[:, None], 4, axis=1)
    column = one_a_row(repeated)
    assert column is not None and column.tolist() == [[1], [2], [3], [4], [5], [6]]
    assert one_a_row(repeated + np.eye(6, 4, dtype=np.uint16)) is None
    assert one_a_row(column) is None  # it is that already
    assert one_a_row(repeated[0]) is None
    gpu, rows = FakeGpu(), (HEADS + 2 * KV_HEADS) * HEAD_DIM
    quantized = {"0.qkv": gpu.buffer((rows, 2, 128), "uint8"), "0.qkv.scales": gpu.buffer((rows, 1))}
    form = replace(FORM, layers=(layer(0, "qkv"), layer(1)))
    steps(gpu, monkeypatch, form, weights(gpu) | quantized).capture(1, MAIL, caches(gpu))
    assert gpu.launched[1][0] == "product<1, 1, 0>"


def test_quantized_matrices_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits in blocks of 128, 4 bits in blocks of 32, fp8 by row: what meets them is fp16."""
    gpu = FakeGpu()
    found = weights(gpu) | {
        "0.qkv": gpu.buffer(((HEADS + 2 * KV_HEADS) * HEAD_DIM, 2, 128), "uint8"),
        "0.qkv.scales": gpu.buffer(((HEADS + 2 * KV_HEADS) * HEAD_DIM, 2)),
        "0.o": gpu.buffer((HIDDEN, HEADS * HEAD_DIM), "float8e4m3fn"),
        "0.o.scales": gpu.buffer((HIDDEN, 1), "float32"),
        "0.down": gpu.buffer((HIDDEN, INNER // 32, 16), "uint8"),
        "0.down.scales": gpu.buffer((HIDDEN, INNER // 32)),
    }
    form = replace(FORM, layers=(layer(0, "qkv o down"), layer(1)))
    steps(gpu, monkeypatch, form, found).capture(1, MAIL, caches(gpu))
    names = [name for name, _, _ in gpu.launched[1:6]]
    assert names == ["product<1, 2, 0>", "attention", "product<2, 1, 1>", "product<0, 0, 2>", "product<3, 3, 1>"]
    qkv, attention, output, gate_up, down = (arguments for _, _, arguments in gpu.launched[1:6])
    assert (attention.out_half, gate_up.out_half) == (1, 1)
    assert (output.step, down.step) == (1.0, 64.0)
    assert (qkv.shift, qkv.blocks, output.blocks, down.shift) == (7, 2, 1, 5)
    later = [arguments for _, _, arguments in gpu.launched[6:11]]
    assert (later[1].out_half, later[3].out_half, later[4].step) == (0, 0, 1.0)


def test_matrices_that_no_kernel_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    odd = weights(gpu) | {"1.o": gpu.buffer((HIDDEN - 8, HEADS * HEAD_DIM))}
    with pytest.raises(BundleError, match=r"no kernel multiplies by 1\.o"):
        steps(gpu, monkeypatch, FORM, odd)
    found = weights(gpu)
    del found["0.up"]
    with pytest.raises(BundleError, match=r"steps read 0\.up, which is no weight"):
        steps(gpu, monkeypatch, FORM, found)


@pytest.mark.parametrize(
    "change",
    [
        {"0.o": (2 * HIDDEN, HEADS * HEAD_DIM)},
        {"0.qkv": (HIDDEN, HIDDEN)},
        {"0.up": (2 * INNER, HIDDEN)},
        {"0.down": (HIDDEN, 2 * INNER)},
    ],
)
def test_matrices_of_another_size_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, tuple[int, int]]
) -> None:
    """Their rows would be written where other memory is."""
    gpu = FakeGpu()
    found = weights(gpu) | {name: gpu.buffer(shape) for name, shape in change.items()}
    with pytest.raises(BundleError, match="no kernel multiplies by"):
        steps(gpu, monkeypatch, FORM, found)


def test_a_float_matrix_is_of_the_activation_s_width(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    found = weights(gpu) | {"0.o": gpu.buffer((HIDDEN, HEADS * HEAD_DIM), "float32")}
    with pytest.raises(BundleError, match=r"no kernel multiplies by 0\.o"):
        steps(gpu, monkeypatch, FORM, found)


def test_a_gpu_of_little_shared_memory_takes_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr(gpu, "shared_bytes", lambda: 8192)
    assert steps(gpu, monkeypatch, FORM, weights(gpu)).most_tokens == 3
    assert steps(FakeGpu(), monkeypatch, FORM, weights(gpu)).most_tokens == MAX_TOKENS


def test_blocks_of_weights_that_are_no_power_of_two_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels find a scale by a shift."""
    gpu = FakeGpu()
    found = weights(gpu) | {
        "0.gate": gpu.buffer((384, HIDDEN)),
        "0.up": gpu.buffer((384, HIDDEN)),
        "0.down": gpu.buffer((HIDDEN, 384), "float8e4m3fn"),
        "0.down.scales": gpu.buffer((HIDDEN, 4), "float32"),
    }
    form = replace(FORM, layers=(layer(0, "down"), layer(1)))
    with pytest.raises(BundleError, match=r"no kernel multiplies by 0\.down"):
        steps(gpu, monkeypatch, form, found)
