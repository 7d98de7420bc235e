"""The vision encoder in segments: what is run in which order, and which rows attend to which."""

from typing import Any

import pytest
from kernel_fakes import FakeGpu, FakeNvrtc
from reflectrt.runtime.engines import cuda_vision
from reflectrt.runtime.engines.cuda_vision import VisionSegments
from reflectrt.runtime.engines.device_memory import DeviceBuffer
from reflectrt.runtime.manifest import VisionForm

HEADS, HEAD_DIM, GRIDS, PATCHES, WINDOWS, WINDOW = 2, 80, 3, 288, 6, 64
FORM = VisionForm("start", "block", "end", HEADS, HEAD_DIM, ("w",), (("0.w",), ("1.w",)), (1,))


class Graph:
    """A session that remembers what was bound."""

    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def queue(self, inputs: dict[str, DeviceBuffer], outputs: dict[str, DeviceBuffer]) -> None:
        self.log.append((self.name, dict(inputs), dict(outputs)))

    def row_bytes(self) -> int:
        return {"start": 10, "end": 30}.get(self.name, 20)


class LoggingGpu(FakeGpu):
    """Launches go into the same log as the sessions' runs."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log

    def launch(self, function: str, how: Any, arguments: Any) -> None:
        super().launch(function, how, arguments)
        self.log.append((function, how, self.launched[-1][2]))


def run(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], VisionSegments, DeviceBuffer]:
    monkeypatch.setattr(cuda_vision, "Nvrtc", FakeNvrtc)
    log: list[Any] = []
    gpu = LoggingGpu(log)
    ends, blocks = (Graph(log, "start"), Graph(log, "end")), [Graph(log, "block 0"), Graph(log, "block 1")]
    vision = VisionSegments(gpu, gpu, "bfloat16", FORM, ends, blocks)  # type: ignore[arg-type]
    inputs = {
        "patches": gpu.buffer((GRIDS, PATCHES, 1176), "uint8"),
        "patch_positions": gpu.buffer((PATCHES, 2), "int64"),
        "windows": gpu.buffer((WINDOWS, WINDOW), "int64"),
        "window_slots": gpu.buffer((PATCHES,), "int64"),
    }
    embeddings = gpu.buffer((GRIDS, PATCHES // 4, 16))
    vision.run(inputs, {"embeddings": embeddings})
    return log, vision, embeddings


def test_attention_stands_between_the_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _, embeddings = run(monkeypatch)
    assert [name for name, _, _ in log] == [*("start", "segments", "block 0", "segments", "block 1", "segments", "end")]
    start, *_, last = log
    attended = [arguments.out for name, _, arguments in log if name == "segments"]
    assert len(set(attended)) == 1
    assert last[1]["attended"].address == attended[0]
    assert last[1]["window_ranks"] is start[2]["window_ranks"]
    assert last[2]["embeddings"] is embeddings


def test_a_block_reads_the_residual_of_the_one_before_and_writes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _, _ = run(monkeypatch)
    start, first, second, end = (entry for entry in log if entry[0] != "segments")
    assert first[1]["residual"] is start[2]["residual"]
    assert second[1]["residual"] is first[2]["residual_out"]
    assert end[1]["residual"] is second[2]["residual_out"]
    assert first[1]["residual"] is not first[2]["residual_out"]


def test_rows_attend_within_windows_or_whole_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _, _ = run(monkeypatch)
    windowed, full, again = ((how, arguments) for name, how, arguments in log if name == "segments")
    assert windowed[0].grid == again[0].grid == (GRIDS * WINDOWS, HEADS, 1)
    assert windowed[1].ends == again[1].ends == log[0][2]["window_ends"].address
    assert log[0][2]["window_ends"].shape == (GRIDS * WINDOWS + 1,)
    blocks = -(-PATCHES // 64)
    assert full[0].grid == (GRIDS * blocks, HEADS, 1) and full[1].blocks == blocks
    assert full[1].ends != windowed[1].ends
    assert {arguments.patches for _, arguments in (windowed, full)} == {PATCHES}


def test_memory_for_a_patch_counts_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    _, vision, _ = run(monkeypatch)
    assert vision.row_bytes() == 10 + 20 + 30 + 6 * HEADS * HEAD_DIM * 2
