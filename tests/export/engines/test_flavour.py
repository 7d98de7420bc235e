"""Where TensorRT and TensorRT-RTX differ, against modules that only take notes: full TensorRT is not installed here."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from reflectrt.export.engines.flavour import (
    check_architecture,
    configure,
    create_network,
    rtx_architectures,
    save_timings,
)
from reflectrt.runtime.engines.tensorrt_library import Library
from reflectrt.runtime.errors import CompatibilityError, ExportError


def library(name: Any, **api: Any) -> Library:
    module: Any = ModuleType(name)
    for key, value in api.items():
        setattr(module, key, value)
    return Library(name, module, "10.16.1.11" if name == "tensorrt" else "1.7.1")


TENSORRT = library(
    "tensorrt",
    BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="compatible"),
    NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
)
RTX = library(
    "tensorrt-rtx",
    ComputeCapability=SimpleNamespace(__members__={"NONE": 0, "SM86": 1, "SM89": 2}, SM86="cc86"),
    NetworkDefinitionCreationFlag=SimpleNamespace(),
)


class Config:
    """A builder's configuration that notes what is set."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.cache = b""
        self.capabilities: list[Any] = []

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b" and more")

    def set_compute_capability(self, capability: Any, index: int) -> None:
        self.capabilities.append((capability, index))


def test_tensorrt_keeps_timings_from_build_to_build(tmp_path: Path) -> None:
    file = tmp_path / "timings"
    for before, after in ((b"", b" and more"), (b" and more", b" and more and more")):
        config = Config()
        configure(TENSORRT, config, "SM87", version_compatible=True, cache=file)
        assert (config.flags, config.cache, config.capabilities) == (["compatible"], before, [])
        save_timings(TENSORRT, config, file)
        assert file.read_bytes() == after


def test_rtx_is_told_the_architecture_and_has_no_compatible_plans(tmp_path: Path) -> None:
    config = Config()
    configure(RTX, config, "SM86", version_compatible=False, cache=tmp_path / "timings")
    save_timings(RTX, config, tmp_path / "timings")
    assert config.capabilities == [("cc86", 0)] and not (tmp_path / "timings").exists()
    with pytest.raises(ExportError, match="drop --version-compatible"):
        configure(RTX, config, "SM86", version_compatible=True, cache=None)


def test_networks_are_strongly_typed_also_where_there_is_no_other_kind() -> None:
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert create_network(TENSORRT, builder) == 2
    assert create_network(RTX, builder) == 0


def test_orin_has_no_fp8_and_thor_has() -> None:
    check_architecture(TENSORRT, "SM87", {"int8", "int4-weights"})
    check_architecture(TENSORRT, "SM110", {"fp8"})
    with pytest.raises(CompatibilityError, match=r"SM87 has no FP8, which starts with SM89"):
        check_architecture(TENSORRT, "SM87", {"fp8"})


@pytest.mark.parametrize("name", ["86", "Orin", "SM"])
def test_what_is_no_architecture_says_how_they_look(name: str) -> None:
    with pytest.raises(CompatibilityError, match="SM86"):
        check_architecture(RTX, name, set())
    with pytest.raises(CompatibilityError, match="pass one like SM86"):
        check_architecture(TENSORRT, name, {"fp8"})
    assert rtx_architectures(RTX) == ["SM86", "SM89"]
