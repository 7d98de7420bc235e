"""A report as a spreadsheet and as a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from .report import Profile, Report, Stage, Total

COLUMNS = (
    *("bundle", "sha256", "precision", "stage", "samples", "p50_s", "p90_s", "p99_s", "sum_s"),
    *("float_ops", "integer_ops", "weight_bytes", "activation_bytes", "cache_bytes"),
    *("ops_per_s", "bytes_per_s", "compute_share", "bandwidth_share", "bound"),
)


def to_csv(report: Report) -> str:
    """One row a stage and wait of every bundle, and of PyTorch."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for profile in report.profiles:
        bundle = profile.bundle
        common = {"bundle": bundle.path, "sha256": bundle.sha256, "precision": bundle.precision}
        timed: tuple[Stage | Total, ...] = (*profile.stages, *profile.totals)
        writer.writerows(common | _row(each) for each in timed)
    for rival in report.rivals:
        writer.writerow(vars(rival) | {"bundle": rival.name, "precision": rival.dtype, "stage": "cold question"})
    return out.getvalue()


def _row(timed: Stage | Total) -> dict[str, object]:
    work = timed.work if isinstance(timed, Stage) else None
    return vars(timed) | {"stage": timed.name} | (vars(work) if work else {})


def to_markdown(report: Report) -> str:
    """The whole report with tables."""
    place = report.environment
    versions = ", ".join(f"{name} {text}" for name, text in place.versions.items())
    lines = [
        f"# Profile of {report.profiles[0].bundle.path}",
        "",
        f"{place.device}, {place.threads} threads, {place.driver}; {versions}; clock {place.clock}; "
        f"load {place.load_average:.2f}.",
        *(f"\n**Note:** {note}" for note in report.notes),
    ]
    if report.ceilings:
        top = report.ceilings
        integers = f"{top.integer_ops_per_s / 1e9:.1f} GOP/s int8, " if top.integer_ops_per_s else ""
        lines += [
            "",
            f"Ceilings: {top.float_ops_per_s / 1e9:.1f} GFLOP/s {top.element}, {integers}"
            f"copy {top.copy_bytes_per_s / 1e9:.1f} GB/s, read {top.read_bytes_per_s / 1e9:.1f} GB/s.",
        ]
    for profile in report.profiles:
        lines += ["", *_profile(profile)]
    return "\n".join([*lines, *_rivals(report), ""])


def _profile(profile: Profile) -> list[str]:
    bundle, asked = profile.bundle, profile.workload
    state = "verified" if bundle.verified else "UNVERIFIED"
    lines = [
        f"## {bundle.path}, {bundle.target} {bundle.precision}",
        "",
        f"sha256 `{bundle.sha256}`, {bundle.size_bytes / 1e6:.1f} MB, {state}. "
        f"{asked.medium} {asked.kind}, {asked.frames} frames, {asked.visual_tokens} visual tokens, "
        f"{asked.question_tokens} question tokens, {asked.reflection_steps} reflection steps; "
        f"{asked.runs} runs after {asked.warm_up} warm-up.",
        "",
        *(f"- {line}" for line in profile.advice),
        "",
        *table(("stage", "p50 ms", "p90 ms", "p99 ms", "GFLOP/s", "GB/s", "compute", "bytes", "bound"),
               [_cells(stage) for stage in profile.stages]),
        "",
        *table(("wait", "p50 ms", "p90 ms", "p99 ms", "sum of stages ms"),
               [(t.name, *_times(t), f"{1e3 * t.sum_s:.2f}") for t in profile.totals]),
    ]  # fmt: skip
    for graph, ranked in profile.operators.items():
        rows = [
            (each.name, each.op, f"{1e3 * each.seconds:.2f}", f"{each.share:.1%}", str(each.calls)) for each in ranked
        ]
        lines += ["", *table((f"{graph}: operator", "type", "ms", "share", "calls"), rows)]
    return lines


def _times(timed: Stage | Total) -> tuple[str, str, str]:
    return f"{1e3 * timed.p50_s:.2f}", f"{1e3 * timed.p90_s:.2f}", f"{1e3 * timed.p99_s:.2f}"


def _cells(stage: Stage) -> tuple[str, ...]:
    work = stage.work
    if work is None:
        return (stage.name, *_times(stage), "", "", "", "", "")
    shares = ("" if share is None else f"{share:.0%}" for share in (work.compute_share, work.bandwidth_share))
    rates = f"{work.ops_per_s / 1e9:.2f}", f"{work.bytes_per_s / 1e9:.2f}"
    return (stage.name, *_times(stage), *rates, *shares, work.bound or "")


def _rivals(report: Report) -> list[str]:
    if not report.rivals:
        return []
    rows = [
        (r.name, r.dtype, *(f"{1e3 * s:.2f}" for s in (r.p50_s, r.vision_s, r.prefill_s, r.step_s)), f"{r.ratio:.2f}")
        for r in report.rivals
    ]
    return ["", *table(("PyTorch", "type", "cold p50 ms", "vision ms", "prefill ms", "step ms", "times ours"), rows)]


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table."""
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]
