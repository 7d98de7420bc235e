"""What other programs take of the processor, and that rounds which they disturb are done again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reflectrt.bench.profile import measure, others
from reflectrt.bench.profile.others import Others


def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *ticks: str) -> list[float]:
    """Shares between readings of the kernel's count, a second of two cores apart, with 0.5 s of our own in each."""
    file = tmp_path / "stat"
    clock = iter(range(100))
    monkeypatch.setattr(others, "STAT", file)
    monkeypatch.setattr(others, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(others, "process_time", lambda: next(own))
    monkeypatch.setattr(others.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(others.os, "sysconf", lambda _: 100)
    own = iter(0.5 * n for n in range(100))
    file.write_text(ticks[0])
    watched, found = Others(), []
    for text in ticks[1:]:
        file.write_text(text)
        found.append(watched.share())
    return found


def test_idle_and_our_own_time_are_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("cpu 100 0 0 900 0 0 0 0 0 0", "cpu 150 0 0 1040 10 0 0 0 0 0", "cpu 200 50 50 1090 10 0 0 0 50 0")
    assert told(tmp_path, monkeypatch, *lines) == [0.0, pytest.approx(0.5)]


def test_a_system_that_does_not_tell_has_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(tmp_path, monkeypatch, "intr 1", "intr 2") == [0.0]


@pytest.mark.parametrize(
    ("shares", "rounds", "said"),
    [
        ([0, 0, 0], [1, 2, 3], []),
        ([0.5, 0, 0.2, 0, 0], [2, 4, 5], ["disturbed 2 rounds: 2 were done again, 0 counted"]),
        ([0.5] * 6, [4, 5, 6], ["disturbed 6 rounds: 3 were done again, 3 counted"]),
    ],
)
def test_disturbed_rounds_are_done_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, shares: list[float], rounds: list[int], said: list[str]
) -> None:
    numbers = iter(range(1, 100))
    subject = SimpleNamespace(round=lambda _: next(numbers))
    candidate: Any = SimpleNamespace(subject=subject, rounds=[])
    given = iter(value for share in shares for value in (0.0, share))  # asked before and after each turn
    monkeypatch.setattr(measure, "Others", lambda: SimpleNamespace(share=lambda: next(given)))
    plan: Any = SimpleNamespace(warm_up=0, runs=3, work=None)
    notes = measure._alternate([candidate], [], plan, lambda _: None)
    assert candidate.rounds == rounds
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True))
