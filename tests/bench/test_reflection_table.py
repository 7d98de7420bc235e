"""The table of what reflection buys."""

import json
from pathlib import Path

import pytest
from reflectrt.bench.reflection_table import TASKS, plot, table

CELL = {
    "questions": 100, "accuracy": 0.5, "interval_95": [0.4, 0.6], "difference": 0.1,
    "difference_interval_95": [0.02, 0.18], "forwards": 6, "median_s": 1.25,
}  # fmt: skip
SUMMARIES = [{"reference K=0": CELL, "reference K=4": CELL, "zooming": CELL, "plain K=0": CELL}] * 2


def test_every_cell_has_a_row_with_its_intervals():
    lines = table(SUMMARIES).splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {10}
    assert lines[3].startswith("| reference K=4 | 50.0 (40.0 to 60.0) % | +10.0 (+2.0 to +18.0) | 6 | 1,250 ms |")


def test_the_figure_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    plot(SUMMARIES, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_documented_table_is_the_measured_one():
    root = Path(__file__).parents[2]
    files = [root / "bench" / "results" / f"reflection_{task}.json" for task in TASKS]
    measured = table([json.loads(file.read_text(encoding="utf-8")) for file in files])
    assert measured in (root / "docs" / "reflection.md").read_text(encoding="utf-8")
