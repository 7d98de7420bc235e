"""A picture of a report: each bundle's cold question as a bar of its stages. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import UsageError
from .advice import cold_seconds
from .report import Report

FORMATS = (".png", ".svg", ".pdf")


def check(file: Path) -> None:
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

    figure = Figure(figsize=(9, 1.6 + 0.6 * len(report.profiles)), layout="constrained")
    axes = figure.subplots()
    parts = [cold_seconds(profile.stages) for profile in report.profiles]
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = [f"{Path(profile.bundle.path).name} {profile.bundle.precision}" for profile in report.profiles]
    left = [0.0] * len(parts)
    for name in names:
        widths = [1e3 * part.get(name, 0.0) for part in parts]
        axes.barh(rows, widths, left=left, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a cold question, medians, stages one after the other")
    axes.set_title(report.environment.device, fontsize="medium")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=4, frameon=False)
    figure.savefig(file)
