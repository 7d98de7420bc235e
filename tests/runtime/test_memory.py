from pathlib import Path

import pytest
from fakes import FACTS
from reflectrt.runtime import memory
from reflectrt.runtime.errors import ResourceError


def test_cache_bytes_are_keys_and_values_of_every_layer() -> None:
    assert memory.cache_bytes(FACTS, 10, 4) == 2 * 2 * 1 * 2 * 4 * 10


def test_what_fits_exactly_is_taken_and_one_byte_less_is_not() -> None:
    need = memory.cache_bytes(FACTS, 500, 4)
    memory.check_cache_fits(FACTS, 500, 4, need)
    with pytest.raises(ResourceError):
        memory.check_cache_fits(FACTS, 500, 4, need - 1)


def test_refusal_gives_need_free_and_what_would_fit() -> None:
    free = memory.cache_bytes(FACTS, 1_000_000, 4) + 5
    with pytest.raises(ResourceError) as caught:
        memory.check_cache_fits(FACTS, 3_000_000, 4, free)
    message = str(caught.value)
    assert all(part in message for part in ("3000000 tokens", "96 MB", "32 MB are free", "room for 1000000 tokens"))
    assert "--max-frames" in message
    memory.check_cache_fits(FACTS, 1_000_000, 4, free)


def test_free_memory_is_a_sane_number_of_bytes() -> None:
    assert 2**20 < memory.available_bytes() < 2**50


@pytest.mark.parametrize(("limit", "left"), [("1000000\n", 400_000), ("max\n", 2**62)])
def test_a_control_group_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, left: int) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("600000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_kernel_available", lambda: 2**62)
    assert memory.available_bytes() == left
    monkeypatch.setattr(memory, "_kernel_available", lambda: 1234)
    assert memory.available_bytes() == 1234


def test_no_control_group_is_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "absent")
    monkeypatch.setattr(memory, "_kernel_available", lambda: 77)
    assert memory.available_bytes() == 77
