"""The kernels compile for every GPU that runs them, and their arguments are the ones that Python passes."""

import ctypes
import re

import pytest
from reflectrt.runtime.engines import cuda_long, cuda_steps, cuda_vision, step_blocks
from reflectrt.runtime.kernels import arguments, source
from reflectrt.runtime.kernels.nvrtc import Nvrtc

SOURCES = {
    "step.cu": source(*cuda_steps.SOURCES),
    **{name: source(name) for name in (cuda_long.SOURCE, cuda_vision.SOURCE)},
}
SEVEN = {"TOKENS": 1, "HIDDEN": 3584, "HEADS": 28, "KV_HEADS": 4, "HEAD_DIM": 128, "EPSILON": "1e-06f", "RING_DEPTH": 3}
SMALL = {"TOKENS": 5, "HIDDEN": 256, "HEADS": 4, "KV_HEADS": 2, "HEAD_DIM": 64, "EPSILON": "1e-06f", "RING_DEPTH": 6}


@pytest.mark.parametrize(
    ("file", "structure"),
    [
        *(("step.cu", name) for name in ("Mail", "Begin", "Finish", "Product", "Attention")),
        *(("mlp.cu", name) for name in ("Round", "Inner", "Norm")),
        ("segments.cu", "Segments"),
    ],
)
def test_arguments_are_the_source_s_field_by_field(file: str, structure: str) -> None:
    body = re.search(rf"struct {structure} {{(.*?)\n}};", SOURCES[file], re.DOTALL)
    assert body is not None
    lines = [line.split("//")[0] for line in body[1].splitlines()]
    names = [name for line in lines for name in re.findall(r"(\w+)(?:\[\d+\])?(?=[,;])", line)]
    assert [name for name, _ in getattr(arguments, structure)._fields_] == names


def test_numbers_that_stand_for_kinds_are_the_source_s() -> None:
    for names in (("FLOATS", "INT8", "FP8", "INT4"), ("QKV", "RESIDUAL", "GATE_UP"), ("ROW", "SEGMENT", "LANE")):
        for name in names:
            assert f"{name} = {getattr(arguments, name)}" in SOURCES["step.cu"]
    assert f"INNER_STEP = {arguments.INNER_STEP:.0f}.f" in SOURCES["step.cu"]


def test_a_mail_has_room_for_the_longest_step() -> None:
    assert f"i64 positions[{3 * step_blocks.MAX_TOKENS}];" in SOURCES["step.cu"]
    assert ctypes.sizeof(dict(arguments.Mail._fields_)["positions"]) == 8 * 3 * step_blocks.MAX_TOKENS


def test_blocks_are_cut_as_the_source_has_them() -> None:
    warps = {"MOST_WARPS": step_blocks.WARPS, "READERS": step_blocks.ATTENTION_WARPS}
    for name, number in (warps | {"FINISH_WARPS": step_blocks.FINISH_WARPS}).items():
        assert f"constexpr int {name} = {number};" in SOURCES["step.cu"]
    assert f"constexpr int UNIT = {step_blocks.UNIT_KEYS} * LOADS;" in SOURCES["step.cu"]
    most = {kind: step_blocks.BLOCKS[kind] for kind in (arguments.QKV, arguments.RESIDUAL, arguments.GATE_UP)}
    assert most == {arguments.QKV: 3, arguments.RESIDUAL: 2, arguments.GATE_UP: 3}
    assert "__launch_bounds__(MOST_WARPS * 32, KIND == RESIDUAL ? 2 : 3) product" in SOURCES["step.cu"]


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_steps_compile_without_a_gpu(capability: tuple[int, int]) -> None:
    kernels = [f"product<{kind}, {scaling}, 2>" for kind, scaling in ((0, 0), (1, 2), (2, 1), (3, 3))]
    found = Nvrtc().compile(SOURCES["step.cu"], capability, {**SEVEN, "BF16": 1, "CACHE": 1}, kernels)
    assert found.code.startswith(b"\x7fELF")
    assert all(found.names[name].encode() in found.code for name in kernels)


@pytest.mark.parametrize(("bf16", "cache"), [(0, 0), (1, 2)])
def test_steps_of_another_shape_compile(bf16: int, cache: int) -> None:
    found = Nvrtc().compile(SOURCES["step.cu"], (9, 0), {**SMALL, "BF16": bf16, "CACHE": cache}, ["product<0, 0, 0>"])
    assert b"attention" in found.code


def test_the_mlps_of_long_runs_compile_where_fp8_is() -> None:
    found = Nvrtc().compile(SOURCES["mlp.cu"], (8, 9), {}, [])
    assert all(kernel.encode() in found.code for kernel in cuda_long.KERNELS)


@pytest.mark.parametrize(("heads", "head_dim", "bf16"), [(16, 80, 1), (4, 64, 0), (8, 112, 1)])
def test_the_vision_encoder_s_attention_compiles(heads: int, head_dim: int, bf16: int) -> None:
    macros = {"HEADS": heads, "HEAD_DIM": head_dim, "BF16": bf16}
    assert b"segments" in Nvrtc().compile(SOURCES["segments.cu"], (8, 0), macros, []).code


def test_sources_need_no_header() -> None:
    assert not any("#include" in text for text in SOURCES.values())
