"""The advice names a precision that the target has, and that helps where the stage is bound."""

import pytest
from fakes import make_manifest
from reflectrt.bench.profile.advice import advise
from reflectrt.bench.profile.report import Memory, Stage, StageWork, Total

MEMORY = Memory({}, 0, 0, 0, 0, {}, {}, 0, 4000, 4000)
WAITS = (Total("cold question", 1, 1.0, 1.0, 1.0, 1.0), Total("follow-up question", 1, 0.1, 0.1, 0.1, 0.1))


def stage(name: str, bound: str) -> Stage:
    work = StageWork(1, 0, 1, 1, 1, 1, 1.0, 1.0, 0.6, 0.5, bound)
    return Stage(name, 1, 1.0, 1.0, 1.0, work)


def said(target: str, precision: str, name: str, bound: str) -> str:
    manifest = make_manifest(target=target, precision=precision)
    return " ".join(advise([stage(name, bound)], WAITS, MEMORY, manifest))


@pytest.mark.parametrize(
    ("target", "precision", "compute", "memory"),
    [
        ("cpu", "fp32", "int8", "int8"),
        ("cpu", "int8", None, "int4"),
        ("cpu", "int8-weights", "int8", "int4"),
        ("cpu", "int4", "int8", None),
        ("cuda", "bf16", None, "fp8"),
        ("cuda", "int8-weights", None, "int4"),
        ("tensorrt-rtx", "bf16", "int8", "int8"),
    ],
)
def test_the_precision_to_try(target: str, precision: str, compute: str | None, memory: str | None) -> None:
    vision, token = said(target, precision, "vision", "compute"), said(target, precision, "answer token", "memory")
    assert (f", or --precision {compute}" in f"{vision} ") if compute else "--precision" not in vision
    assert (f"ceiling: --precision {memory} takes less" in token) if memory else "--precision" not in token


def test_fp8_helps_a_prefill_on_cuda() -> None:
    assert ", or --precision fp8" in said("cuda", "bf16", "prefill", "compute")


def test_a_context_that_does_not_fit_is_said() -> None:
    tight = Memory({}, 0, 0, 0, 0, {}, {}, 0, 1000, 4000)
    lines = advise([stage("vision", "compute")], WAITS, tight, make_manifest())
    assert any("1000 tokens fits, the bundle allows 4000" in line for line in lines)
