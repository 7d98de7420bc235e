"""`python -m reflectrt.bench.gpu.table RESULTS.json`: the results as the Markdown table of docs/cuda.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> str:
    """One row a stage: transformers as published and without dummies, ours, and ours against its ceiling."""
    published, plain = (results["transformers"][form] for form in ("published", "without_dummies"))
    stages, answers = results["stages"], results["answers"]
    step = published["step_s"] + published["dummies_s"]
    rows = [
        ("vision encoder", published["vision_s"], plain["vision_s"], stages["vision_s"], stages["vision_share"]),
        ("prefill", published["prefill_s"], plain["prefill_s"], stages["prefill_s"], stages["prefill_share"]),
        ("reflection or decode step", step, plain["step_s"], stages["step_s"], stages["step_share"]),
        ("answer, cold", published["total_s"], plain["total_s"], answers["cold_s"], None),
        ("answer, follow-up", published["total_s"], plain["total_s"], answers["follow_up_s"], None),
    ]
    lines = [
        "| | transformers, as published | without dummies | ReflectRT | of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name, first, second, ours, share in rows:
        part = "" if share is None else f"{100 * share:.0f} %"
        lines.append(f"| {name} | {_ms(first)} | {_ms(second)} | **{_ms(ours)}** | {part} |")
    return "\n".join(lines)


def growth(results: dict[str, Any]) -> str:
    """One row a number of frames."""
    lines = ["| frames | vision | prefill | answer, cold | answer, follow-up |", "|---|---|---|---|---|"]
    for frames, found in results["growth_by_frames"].items():
        stages = (found["vision_s"], found["prefill_s"], found["cold_s"], found["follow_up_s"])
        lines.append(f"| {frames} | " + " | ".join(map(_ms, stages)) + " |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(table(found), growth(found), sep="\n\n")
