"""A report for a terminal of 80 columns: advice first, then where it comes from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from .advice import cold_seconds
from .report import Ceilings, Memory, Operator, Profile, Report, Stage, Total

WIDTH = 80
BAR = 30
SHOWN_OPERATORS = 3
"""Of each graph here; `--json` and `--markdown` have ten."""


def terminal(report: Report) -> str:
    """The report as text, no line longer than 80 columns."""
    first = report.profiles[0]
    parts = [
        head(report),
        ["", "what to change", *_bullets(first.advice)],
        ["", "where a cold question's time goes", *bars(first)],
        ["", *stages(first)],
        ["", *memory(first.memory)] if first.memory else [],
        ["", "costliest operators", *operators(first.operators)] if first.operators else [],
        ["", *comparison(report)] if len(report.profiles) > 1 or report.rivals else [],
        ["", *_bullets(report.notes, "note: ")] if report.notes else [],
    ]
    return "\n".join(_cut(line) for part in parts for line in part)


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _bullets(lines: Iterable[str], start: str = "- ") -> list[str]:
    return [
        piece
        for line in lines
        for piece in textwrap.wrap(line, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    ]


def head(report: Report) -> list[str]:
    """What was measured, on what."""
    first, place = report.profiles[0], report.environment
    bundle, asked = first.bundle, first.workload
    versions = ", ".join(
        f"{name} {place.versions[name]}"
        for name in ("onnxruntime", "onnxruntime-gpu", "numpy")
        if name in place.versions
    )
    grid = "x".join(map(str, asked.grid))
    return [
        f"bundle   {bundle.path}",
        f"         {bundle.target} {bundle.precision}, {_bytes(bundle.size_bytes)}, sha256 {bundle.sha256[:12]}"
        + ("" if bundle.verified else ", UNVERIFIED"),
        f"device   {place.device}, {place.threads} threads, {place.driver}",
        f"         {versions}; clock {place.clock.split(',')[0]}",
        f"asked    {asked.medium} {asked.kind}, {asked.frames} frames, grid {grid}, {asked.visual_tokens} tokens;",
        f"         {asked.question_tokens} question tokens, {asked.reflection_steps} reflection steps",
        f"runs     {asked.runs} after {asked.warm_up} warm-up; measuring costs {first.overhead.share:.2%}",
        *_ceilings(report.ceilings),
    ]


def _ceilings(found: Ceilings | None) -> list[str]:
    if found is None:
        return []
    integers = f"{found.integer_ops_per_s / 1e12:.3f} TOP/s int8, " if found.integer_ops_per_s else ""
    return [
        f"ceiling  {found.float_ops_per_s / 1e12:.3f} TFLOP/s {found.element}, {integers}"
        f"{found.bytes_per_s / 1e9:.1f} GB/s"
    ]


def bars(profile: Profile) -> list[str]:
    """Shares of a cold question's stages."""
    seconds = cold_seconds(profile.stages)
    whole = sum(seconds.values()) or 1.0
    return [
        f"  {name:17} {'#' * round(BAR * value / whole):{BAR}} {value / whole:5.0%} {1e3 * value:10.2f} ms"
        for name, value in seconds.items()
    ]


def stages(profile: Profile) -> list[str]:
    """Every stage and every wait, with percentiles and shares of the ceilings."""
    lines = [f"{'milliseconds':22} {'p50':>9} {'p90':>9} {'p99':>9} {'TFLOP/s':>7} {'GB/s':>6} ceiling"]
    lines += [_stage(stage) for stage in profile.stages]
    lines += ["", f"{'what a user waits for':22} {'p50':>9} {'p90':>9} {'p99':>9}   sum of stages"]
    return lines + [_total(total) for total in profile.totals]


def _milliseconds(timed: Stage | Total) -> str:
    return " ".join(f"{1e3 * seconds:9.2f}" for seconds in (timed.p50_s, timed.p90_s, timed.p99_s))


def _stage(stage: Stage) -> str:
    line = f"{stage.name:22} {_milliseconds(stage)}"
    work = stage.work
    if work is None:
        return line
    line += f" {work.ops_per_s / 1e12:7.3g} {work.bytes_per_s / 1e9:6.3g}"
    if work.bound is None:
        return line
    share = max(work.compute_share or 0.0, work.bandwidth_share or 0.0)
    return f"{line} {share:4.0%} {work.bound}"


def _total(total: Total) -> str:
    return f"{total.name:22} {_milliseconds(total)} {1e3 * total.sum_s:15.2f}"


def memory(found: Memory) -> list[str]:
    """Where memory goes."""
    weights = sum(found.weight_bytes.values())
    peaks = ", ".join(f"{name} {_bytes(size)}" for name, size in found.peaks.items())
    lines = [
        f"memory   weights {_bytes(weights)}, KV cache {_bytes(found.cache_bytes)} for {found.cache_tokens} tokens, "
        f"activations {_bytes(found.activation_bytes)}; a context of {found.context_fits} tokens fits "
        f"(the bundle allows {found.context_limit})",
        f"         process peaks: {peaks}",
    ]
    if found.device_peaks:
        lines.append("         device peaks: " + ", ".join(f"{n} {_bytes(s)}" for n, s in found.device_peaks.items()))
    return [piece for line in lines for piece in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 9)]


def operators(found: dict[str, tuple[Operator, ...]]) -> list[str]:
    """The first few of each graph."""
    return [
        f"  {'' if place else graph:8} {each.name[:32]:32} {each.op[:18]:18} {each.share:4.0%} {_ms(each.seconds):>9}"
        for graph, ranked in found.items()
        for place, each in enumerate(ranked[:SHOWN_OPERATORS])
    ]


def comparison(report: Report) -> list[str]:
    """Other bundles and PyTorch beside the first: seconds and how many times the first's."""
    first = report.profiles[0]
    lines = [f"{'side by side':32} {'cold':>10} {'x':>6} {'follow-up':>10} {'x':>6} {'vision':>9}"]
    for profile in report.profiles:
        cold, again = profile.totals[0].p50_s, profile.totals[1].p50_s
        ratios = cold / first.totals[0].p50_s, again / first.totals[1].p50_s
        vision = next(stage.p50_s for stage in profile.stages if stage.name == "vision")
        name = f"{profile.bundle.path[-24:]} {profile.bundle.precision}"
        lines.append(f"{name:32} {_ms(cold):>10} {ratios[0]:6.2f} {_ms(again):>10} {ratios[1]:6.2f} {_ms(vision):>9}")
    again_s = first.totals[1].p50_s
    for rival in report.rivals:
        rest = f"{_ms(rival.p50_s):>10} {rival.ratio:6.2f} {_ms(rival.p50_s):>10} {rival.p50_s / again_s:6.1f}"
        lines.append(f"{rival.name:32} {rest} {_ms(rival.vision_s):>9}")
    if report.rivals:
        one = report.rivals[0]
        same = "the same option" if all(rival.same_option for rival in report.rivals) else "ANOTHER option"
        lines += _bullets(
            [f"PyTorch: {one.dtype}, sdpa, {one.decoder_runs} decoder runs, no reuse; chose {same}"], "  "
        )
    return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 10 else f"{seconds:.2f} s"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
