"""The table of docs/tensorrt.md from what `bench/tensorrt_builds.py` wrote.

python -m reflectrt.bench.tensorrt_table bench/results/tensorrt_builds.json
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> list[str]:
    """One line for each shape, graph and precision; figures over its architectures."""
    lines = [
        "| shape | graph | precision | architectures | plan, MB | weights, MB | scratch, MB | build, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for names, group in groupby(results["plans"], lambda row: (row["shape"], row["graph"], row["precision"])):
        rows = list(group)
        built = [row for row in rows if row["error"] is None]
        failed = [f"{row['architecture']} FAILED" for row in rows if row["error"] is not None]
        architectures = ", ".join([*(row["architecture"].removeprefix("SM") for row in built), *failed])
        figures = [_range([row[key] for row in built]) for key in ("megabytes", "weights_megabytes")]
        scratch = _range([max(row["scratch_megabytes"]) for row in built])
        seconds = _range([row["seconds"] for row in built])
        lines.append("| " + " | ".join([*names, architectures, *figures, scratch, seconds]) + " |")
    return lines


def _range(numbers: list[float]) -> str:
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def main() -> int:
    """Print the table of a results file."""
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
