"""What reflection buys as one table and one figure, from the summaries that `bench.reflection` wrote.

python -m reflectrt.bench.reflection_table IMAGES/summary.json VIDEOS/summary.json [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASKS = ("images", "videos")
Summary = dict[str, dict[str, Any]]


def table(summaries: Sequence[Summary]) -> str:
    """One row a cell: accuracy with its interval, difference to plain, decoder runs and median time, for each task."""
    head = "".join(f" {task} | against plain | runs | time |" for task in TASKS)
    lines = [f"| |{head}", "|---|" + "---|---|---|---|" * len(TASKS)]
    for name in summaries[0]:
        lines.append(f"| {name} |" + "".join(_columns(summary[name]) for summary in summaries))
    return "\n".join(lines)


def _columns(cell: dict[str, Any]) -> str:
    low, high = cell["interval_95"]
    least, most = cell["difference_interval_95"]
    accuracy = f"{_percent(cell['accuracy'])} ({_percent(low)} to {_percent(high)}) %"
    points = f"{100 * cell['difference']:+.1f} ({100 * least:+.1f} to {100 * most:+.1f})"
    return f" {accuracy} | {points} | {cell['forwards']:.0f} | {1e3 * cell['median_s']:,.0f} ms |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def plot(summaries: Sequence[Summary], file: Path) -> None:
    """Accuracy by reflection steps, rivals as level lines, 95 % intervals as bars and bands. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, task, summary in zip(figure.subplots(1, len(TASKS)), TASKS, summaries, strict=True):
        curve = {name: cell for name, cell in summary.items() if name.startswith("reference")}
        places = range(len(curve))
        middles = [100 * cell["accuracy"] for cell in curve.values()]
        ends = [[100 * end for end in cell["interval_95"]] for cell in curve.values()]
        bars = [[abs(both[side] - middle) for both, middle in zip(ends, middles, strict=True)] for side in (0, 1)]
        axes.errorbar(places, middles, yerr=bars, marker="o", capsize=4, label="reflecting")
        axes.set_xticks(list(places), [name.split("=")[1] for name in curve])
        rivals = [name for name in summary if name not in curve]
        for name, colour in zip(rivals, ("tab:orange", "tab:green"), strict=False):
            low, high = summary[name]["interval_95"]
            axes.axhline(100 * summary[name]["accuracy"], color=colour, linestyle="--", label=name.split(" ")[0])
            axes.axhspan(100 * low, 100 * high, color=colour, alpha=0.12)
        axes.axhline(25, color="grey", linestyle=":", label="chance")
        axes.set_xlabel("reflection steps K")
        axes.set_ylabel("right answers, %")
        axes.set_title(f"{task}, {next(iter(summary.values()))['questions']} questions", fontsize="medium")
        axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", type=Path, nargs=len(TASKS), help="of images, of videos")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    summaries = [json.loads(file.read_text(encoding="utf-8")) for file in options.summaries]
    print(table(summaries))
    if options.plot:
        plot(summaries, options.plot)


if __name__ == "__main__":
    main()
