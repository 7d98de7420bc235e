"""The README's figures are those that were measured."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def row(name: str, case: dict[str, Any]) -> str:
    """A line of the README's table of long media."""
    first = case["first_s"]
    seconds = [f"{first[stage]:.1f} s" for stage in ("read", "vision", "prefill", "total")]
    tokens, peak = f"{case['visual_tokens']:,}", f"{case['peak_mib']:,} MiB"
    follow_up = f"{case['follow_up_s']:.2f} s"
    return f"| {' | '.join([name, tokens, *seconds, follow_up, peak])} |"


def test_long_media_are_reported_as_measured() -> None:
    cases = json.loads((ROOT / "bench/results/long_context.json").read_text())["cases"]
    for case, name in (("video, 10 minutes", "video, 10 minutes, 512 frames"), ("image, 4096 x 4096",) * 2):
        assert row(name, cases[case]) in README
