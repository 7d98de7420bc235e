"""A quantization report in words."""

from __future__ import annotations

from .accuracy import LEAST_AGREEMENT, Report, Share


def render(report: Report) -> list[str]:
    """A line a fact."""
    change, low, high = report.accuracy_change
    lines = [
        f"{report.precision} against {report.against}, {report.questions} questions",
        f"agreement   {_share(report.agreement)} the same answer; "
        f"{report.precision} is to reach {LEAST_AGREEMENT.get(report.precision, 1.0):.1%}",
        f"flips       {', '.join(f'{count} {name}' for name, count in report.flips.items())}",
        f"accuracy    {_share(report.accuracy)}, {report.against} {_share(report.float_accuracy)}",
        f"            changes by {100 * change:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})",
    ]
    if report.kl_mean is not None:
        lines.append(
            f"logits      KL {report.kl_mean:.2g} nats on average, {report.kl_worst:.2g} at worst; "
            f"top 1 {_share(report.top1)}"
        )
    if report.drift:
        lines.append("reflection  cosine of the hidden state by step, mean (worst)")
        lines += [f"  step {d.step:<4} {d.mean_cosine:.5f} ({d.least_cosine:.5f})" for d in report.drift]
    lines += [
        f"size        {_pair(report.size_bytes)}, {report.ratios.size:.0%}",
        f"memory      {_pair(report.peak_bytes)} at most, {report.ratios.memory:.0%}",
        f"speed       {report.median_seconds[0]:.3f} and {report.median_seconds[1]:.3f} s a question, not reading, "
        f"{report.ratios.speed:.2f} times as fast",
    ]
    return lines + [f"not read    {line}" for line in report.unread]


def _share(share: Share) -> str:
    return f"{share.share:.2%} ({share.low:.2%} to {share.high:.2%}; {share.count} of {share.total})"


def _pair(sizes: tuple[int, int]) -> str:
    return f"{sizes[0] / 1e6:.1f} MB instead of {sizes[1] / 1e6:.1f} MB"
