"""What should I change? The few sentences that a profile comes down to."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.manifest import Manifest
from .report import Memory, Stage, Total
from .stages import ANSWER, COLD, FOLLOW_UP, HEAD_STAGE, PREFILL, READ, REFLECT, RESIZE, TOKEN, VISION

LARGE = 0.25  # of a cold question: less is not where to begin
FASTER = dict.fromkeys(("fp32", "fp16", "bf16", "int8-weights", "int4"), "int8")
"""What computes faster: products of 8-bit numbers. Small weights alone do not (docs/quantization_speed.md)."""
LIGHTER = dict.fromkeys(("fp32", "fp16", "bf16"), "int8") | dict.fromkeys(("int8", "int8-weights", "fp8"), "int4")
"""What moves fewer bytes."""


def advise(stages: Sequence[Stage], totals: Sequence[Total], memory: Memory, manifest: Manifest) -> tuple[str, ...]:
    """Where a cold question's time goes and what makes it less, what asking again costs, which context fits."""
    seconds = cold_seconds(stages)
    whole = sum(seconds.values())
    large = [name for name in sorted(seconds, key=lambda name: -seconds[name]) if seconds[name] >= LARGE * whole]
    found = {stage.name: stage for stage in stages}
    lines = [_cold(name, seconds[name] / whole, found.get(name), manifest) for name in large]
    token = found.get(TOKEN)
    if token:
        lines.append(_token(token, manifest))
    lines.append(_again(totals))
    if memory.context_fits < memory.context_limit:
        lines.append(
            f"memory: a context of {memory.context_fits} tokens fits, the bundle allows {memory.context_limit}; "
            "free memory or lower --max-frames"
        )
    return tuple(lines)


def cold_seconds(stages: Sequence[Stage]) -> dict[str, float]:
    """Median seconds of what a cold question consists of, reflection steps together."""
    seconds: dict[str, float] = {}
    for stage in stages:
        if stage.name.startswith(REFLECT):
            seconds[f"{REFLECT}s"] = seconds.get(f"{REFLECT}s", 0.0) + stage.p50_s
        elif stage.name in (READ, RESIZE, VISION, PREFILL, ANSWER, HEAD_STAGE):
            seconds[stage.name] = stage.p50_s
    return seconds


def _cold(name: str, share: float, stage: Stage | None, manifest: Manifest) -> str:
    """A large stage of a cold question."""
    start = f"{name} is {share:.0%} of a cold question"
    if name == READ:
        return f"{start}: fewer frames (--fps, --max-frames) or a smaller file; it overlaps with vision"
    if name == RESIZE:
        return f"{start}: fewer frames (--max-frames), or a file that is already small"
    less = "fewer or smaller frames (--max-frames, --max-pixels)"
    work = stage.work if stage else None
    if work is None or work.bound is None:
        return f"{start}: {less}"
    if work.bound == "neither":
        return f"{start} at {_best(stage):.0%} of its ceiling: look at its operators below, or give it larger inputs"
    smaller = _smaller(name, work.bound, manifest)
    lower = f", or --precision {smaller}" if smaller else ""
    return f"{start}, {work.bound}-bound at {_best(stage):.0%} of the ceiling: {less}{lower}"


def _token(token: Stage, manifest: Manifest) -> str:
    work = token.work
    start = f"an answer token takes {1e3 * token.p50_s:.3g} ms"
    if work is None or work.bound is None:
        return start
    moved = f"{work.bytes_moved / 1e6:.3g} MB"
    if work.bound == "neither":
        return (
            f"{start} for {moved}, {_best(token):.0%} of the ceiling: fixed costs, not bytes; threads may be too many"
        )
    smaller = _smaller(token.name, work.bound, manifest)
    lower = f": --precision {smaller} takes less" if smaller else ""
    return f"{start}, {work.bound}-bound, {moved} at {_best(token):.0%} of the ceiling{lower}"


def _smaller(name: str, bound: str, manifest: Manifest) -> str | None:
    """The precision to try for a stage that this bounds.

    On CUDA fp8 makes a step and a prefill 1.5 times faster, and vision stays as it is (docs/cuda.md).
    """
    precision = (FASTER if bound == "compute" else LIGHTER).get(manifest.precision)
    if manifest.target == "cuda" and precision == "int8":
        return None if name == VISION else "fp8"
    return precision


def _best(stage: Stage | None) -> float:
    if stage is None or stage.work is None:
        return 0.0
    return max(stage.work.compute_share or 0.0, stage.work.bandwidth_share or 0.0)


def _again(totals: Sequence[Total]) -> str:
    seconds = {total.name: total.p50_s for total in totals}
    cold, again = seconds[COLD], seconds[FOLLOW_UP]
    return f"asking again costs {again / cold:.1%} of the first question: keep the session open"
