"""NVIDIA's run-time compiler: found, asked, and its complaints in our words."""

from typing import Any

import pytest
from reflectrt.runtime.errors import CompatibilityError, ReflectRTError
from reflectrt.runtime.kernels.nvrtc import LIBRARIES, Nvrtc

KERNEL = "template <int N> __global__ void scale(float* x) { x[threadIdx.x] *= N * BY; }"


def absent(name: str) -> Any:
    raise OSError(name)


def test_without_the_compiler_the_error_says_what_to_install() -> None:
    with pytest.raises(CompatibilityError, match=r"run-time compiler .*pip install 'onnxruntime-gpu\[cuda,cudnn\]'"):
        Nvrtc(absent)


def test_names_of_the_system_are_tried_after_the_packages() -> None:
    tried: list[str] = []

    def load(name: str) -> Any:
        tried.append(name)
        return absent(name)

    with pytest.raises(CompatibilityError):
        Nvrtc(load)
    assert tried[-2:] == list(LIBRARIES)


def test_an_instance_is_found_by_the_name_that_it_was_asked_by() -> None:
    compiled = Nvrtc().compile(KERNEL, (9, 0), {"BY": "2.f"}, ["scale<3>"])
    assert compiled.names["scale<3>"].encode() in compiled.code


def test_a_source_that_does_not_compile_is_told_with_the_first_error() -> None:
    with pytest.raises(ReflectRTError, match=r"does not compile: .*error.*BY"):
        Nvrtc().compile(KERNEL, (9, 0), {}, ["scale<3>"])
