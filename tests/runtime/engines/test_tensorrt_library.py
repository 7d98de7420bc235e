"""What is said where TensorRT is missing, a stub, broken or too old: always what to install."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
from orin_plan import PLAN
from reflectrt.runtime.engines.tensorrt_library import library_for, load_library
from reflectrt.runtime.errors import CompatibilityError


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, *parts: str) -> None:
    """An installed module of this version with these classes; `None` is not installed."""
    module = None
    if version is not None:
        module = ModuleType(name)
        module.__version__ = version  # type: ignore[attr-defined]
        for part in parts:
            setattr(module, part, object)
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]


def refusal(name: str, lean: bool = False) -> str:
    with pytest.raises(CompatibilityError) as caught:
        load_library(name, lean)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_missing_library_names_its_package_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        pretend(monkeypatch, module, None)
    assert "tensorrt-cu13" in refusal("tensorrt") and "JetPack 7.2" in refusal("tensorrt")
    assert "--extra-index-url" in refusal("tensorrt")
    assert "pip install tensorrt-rtx-cu13" in refusal("tensorrt-rtx")
    assert "tensorrt-lean-cu13" in refusal("tensorrt", lean=True)


def test_a_stub_is_told_from_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorrt", "11.4.0")
    assert "stub" in refusal("tensorrt")


@pytest.mark.parametrize(("version", "jetpack"), [("10.3.0", "6.x"), ("10.13.3.9", "7.0 or 7.1")])
def test_a_version_without_in_place_cache_names_the_jetpack(
    monkeypatch: pytest.MonkeyPatch, version: str, jetpack: str
) -> None:
    pretend(monkeypatch, "tensorrt", version, "Runtime", "Builder")
    text = refusal("tensorrt")
    assert f"{version} (JetPack {jetpack})" in text and "install JetPack 7.2" in text


def test_an_old_rtx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorrt_rtx", "1.2.0.54", "Runtime", "Builder")
    assert "1.7 or newer" in refusal("tensorrt-rtx")


def test_jetpack_7_2_and_the_lean_runtime_load(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorrt", "10.16.1.11", "Runtime", "Builder")
    pretend(monkeypatch, "tensorrt_lean", "10.16.1.11", "Runtime")
    assert load_library("tensorrt").version == "10.16.1.11"
    assert load_library("tensorrt", lean=True).lean


def test_the_lean_runtime_serves_where_plans_are_version_compatible(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "tensorrt", None)
    pretend(monkeypatch, "tensorrt_lean", "10.16.1.11", "Runtime")
    assert library_for("tensorrt", [replace(PLAN, version_compatible=True)]).lean
    with pytest.raises(CompatibilityError, match=r"tensorrt is not installed"):
        library_for("tensorrt", [PLAN])
