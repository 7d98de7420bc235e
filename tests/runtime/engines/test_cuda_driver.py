import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from reflectrt.runtime.engines.cuda import DeviceMemoryError, Gpu, GpuFacts
from reflectrt.runtime.engines.ort_cuda_checks import check_device, check_nodes
from reflectrt.runtime.errors import CompatibilityError, ReflectRTError


class FakeDriver:
    """A driver whose every call works, but for those in `fails`; it remembers what was asked."""

    def __init__(self, **fails: int) -> None:
        self.fails, self.calls = fails, []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_OF_A_KIND"
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value = 12345
            return self.fails.get(name, 0)

        return call


def gpu(**fails: int) -> Gpu:
    return Gpu(load=lambda _: FakeDriver(**fails))


def test_no_driver_is_one_line() -> None:
    def absent(_: str) -> Any:
        raise OSError("cannot open shared object file")

    with pytest.raises(CompatibilityError, match=r"no NVIDIA driver .* export with --target cpu"):
        Gpu(load=absent)


def test_no_gpu_is_one_line() -> None:
    with pytest.raises(CompatibilityError, match=r"no NVIDIA GPU can be used \(CUDA_ERROR_OF_A_KIND\)"):
        gpu(cuInit=100)


def test_a_full_gpu_and_a_broken_one_are_told_apart() -> None:
    with pytest.raises(DeviceMemoryError, match="--max-frames"):
        gpu(cuMemAlloc_v2=2).allocate(100)
    with pytest.raises(ReflectRTError, match=r"failed in cuMemAlloc_v2 \(CUDA_ERROR_OF_A_KIND\)") as caught:
        gpu(cuMemAlloc_v2=719).allocate(100)
    assert not isinstance(caught.value, DeviceMemoryError)


def test_a_download_waits_and_an_upload_does_not() -> None:
    driver = FakeDriver()
    device = Gpu(load=lambda _: driver)
    driver.calls.clear()
    device.upload(0, 0, 8)
    assert driver.calls == ["cuCtxSetCurrent", "cuMemcpyHtoDAsync_v2"]
    driver.calls.clear()
    device.download(0, 0, 8)
    assert driver.calls == ["cuCtxSetCurrent", "cuMemcpyDtoHAsync_v2", "cuCtxSetCurrent", "cuStreamSynchronize"]
    assert device.free_bytes() == 12345


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the structure is that of 64-bit systems")
def test_the_structure_of_pieces_is_the_driver_s() -> None:
    from reflectrt.runtime.engines.cuda import _Copy2D

    assert ctypes.sizeof(_Copy2D) == 128  # CUDA_MEMCPY2D_v2 on 64-bit Linux
    assert _Copy2D.dstDevice.offset == 88


def test_old_drivers_and_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from reflectrt.runtime.engines import ort_cuda_checks

    monkeypatch.setattr(ort_cuda_checks, "_build_cuda", lambda: "13.0")
    check_device(GpuFacts("H100", (9, 0), (13, 0), 2**36))
    with pytest.raises(CompatibilityError, match=r"driver runs CUDA 12\.4, .* for CUDA 13; update the driver"):
        check_device(GpuFacts("H100", (9, 0), (12, 4), 2**36))
    with pytest.raises(CompatibilityError, match=r"compute capability 7\.5, the CUDA target needs 8\.0"):
        check_device(GpuFacts("T4", (7, 5), (13, 0), 2**34))


class FakeSession:
    def __init__(self, providers: list[str], assigned: dict[str, list[str]]) -> None:
        self.providers, self.assigned = providers, assigned

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(provider: str, operators: list[str]) -> Any:
            return SimpleNamespace(
                ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=name) for name in operators]
            )

        return [part(*pair) for pair in self.assigned.items()]


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_a_silent_fall_back_to_the_cpu_is_an_error() -> None:
    check_nodes(FakeSession([CUDA, CPU], {CUDA: ["MatMul"], CPU: ["Reshape", "Cast"]}), "decoder")
    with pytest.raises(CompatibilityError, match="would run decoder on the CPU"):
        check_nodes(FakeSession([CPU], {CPU: ["MatMul"]}), "decoder")
    with pytest.raises(CompatibilityError, match="would run Erf, MatMul of vision on the CPU"):
        check_nodes(FakeSession([CUDA, CPU], {CUDA: ["Add"], CPU: ["MatMul", "Shape", "Erf"]}), "vision")
