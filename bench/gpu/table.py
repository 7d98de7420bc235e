"""`python -m reflectrt.bench.gpu.table RESULTS.json ...`: results as the Markdown tables of docs/cuda.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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


def precisions(runs: Sequence[dict[str, Any]]) -> str:
    """One row a run, each of another precision."""
    lines = [
        "| | weights | vision | prefill | step | answer, cold | answer, follow-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in runs:
        times = [found["stages"][stage] for stage in ("vision_s", "prefill_s", "step_s")]
        times += [found["answers"][answer] for answer in ("cold_s", "follow_up_s")]
        lines.append(f"| {_name(found)} | {found['weights_gb']:.1f} GB | " + " | ".join(map(_ms, times)) + " |")
    return "\n".join(lines)


def _name(found: dict[str, Any]) -> str:
    cache = found.get("kv_cache", "float")
    return found["precision"] if cache == "float" else f"{found['precision']}, KV cache in {cache}"


def tables(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Every table that these runs have the figures for."""
    beside = [table(found) for found in runs if "transformers" in found]
    return [*beside, *map(growth, runs), precisions(runs)]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


if __name__ == "__main__":
    print(*tables([json.loads(Path(file).read_text(encoding="utf-8")) for file in sys.argv[1:]]), sep="\n\n")
