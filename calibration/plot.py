"""A picture of a quantization report: drift by reflection step, and shares with their intervals. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import UsageError
from .accuracy import LEAST_AGREEMENT, Report

FORMATS = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """Raise UsageError before anything is measured: no matplotlib, or a picture of a kind that it does not write."""
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {file} does not end in {', '.join(FORMATS)}; pass a name that does")
    try:
        import matplotlib  # noqa: F401  # asked for by name only
    except ModuleNotFoundError:
        raise UsageError("--plot needs matplotlib; run `pip install 'reflectrt[profile]'`") from None


def write_plot(report: Report, file: Path) -> None:
    """Write the picture; its format is the file name's ending (png, svg, pdf)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    drift, shares = figure.subplots(1, 2)
    steps = [step.step for step in report.drift]
    drift.plot(steps, [1 - step.mean_cosine for step in report.drift], marker="o", label="mean")
    drift.plot(steps, [1 - step.least_cosine for step in report.drift], marker="v", label="worst question")
    drift.set_yscale("log")
    drift.set_xlabel("reflection step")
    drift.set_ylabel(f"1 - cosine with {report.against}")
    drift.set_title("hidden state after each step", fontsize="medium")
    drift.legend(frameon=False)
    rows = {
        "same answer": report.agreement,
        "same top token": report.top1,
        f"accuracy {report.precision}": report.accuracy,
        f"accuracy {report.against}": report.float_accuracy,
    }
    middles = [100 * share.share for share in rows.values()]
    below = [max(0.0, 100 * (share.share - share.low)) for share in rows.values()]
    above = [max(0.0, 100 * (share.high - share.share)) for share in rows.values()]
    shares.errorbar(middles, list(rows), xerr=[below, above], fmt="o", capsize=4)
    shares.axvline(100 * LEAST_AGREEMENT.get(report.precision, 1.0), linestyle=":", label="least agreement")
    shares.invert_yaxis()
    shares.set_xlabel("% of questions, 95 % intervals")
    shares.set_title(f"{report.questions} questions", fontsize="medium")
    shares.legend(frameon=False)
    figure.savefig(file)
