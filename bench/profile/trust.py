"""How far a profile can be trusted on this machine: what recording costs, and whether two profiles agree.

    python -m reflectrt.bench.profile.trust BUNDLE [--media FILE] [--rounds N]

Overhead is the ratio of the same question with and without the recorder, asked in turn, as the median over all pairs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from ...runtime import load
from ...runtime.session import Session
from . import environment
from .measure import Plan, measure
from .media import Source, Synthetic, open_medium
from .report import Profile
from .scenario import OPTIONS, Subject, Workload

MEDIUM = Synthetic(8, 640, 360)
QUESTION = "Which one?"
FOLLOW_UPS, WARM_UP = 20, 2


@dataclass(frozen=True)
class Trust:
    """Shares of 1: what recording adds, and by how much the medians of two profiles differ (larger over smaller)."""

    cold_overhead: float
    follow_up_overhead: float
    difference: dict[str, float]


def check(bundle: Path, source: Source, rounds: int) -> Trust:
    """Compare plain with recorded questions, then two whole profiles."""
    subject = Subject(load(bundle))
    pairs = [_pair(subject, source, number) for number in range(rounds + WARM_UP)][WARM_UP:]
    plan = Plan(Workload(source, 64, None), runs=rounds, unverified=True)
    first, second = (measure([bundle], plan).report.profiles[0] for _ in range(2))
    medians = [_medians(found) for found in (first, second)]
    return Trust(
        cold_overhead=median(cold for cold, _ in pairs) - 1,
        follow_up_overhead=median(again for _, follow_ups in pairs for again in follow_ups) - 1,
        difference={name: _apart(first_s, medians[1][name]) for name, first_s in medians[0].items()},
    )


def _medians(found: Profile) -> dict[str, float]:
    return {each.name: each.p50_s for each in found.stages} | {each.name: each.p50_s for each in found.totals}


def _apart(first_s: float, second_s: float) -> float:
    return max(first_s, second_s) / min(first_s, second_s) - 1


def _pair(subject: Subject, source: Source, number: int) -> tuple[float, list[float]]:
    """Recorded over plain: of a cold question, and of each follow-up. Who goes first changes from pair to pair."""
    subject.log.take()
    models = {"plain": subject.plain, "recorded": subject.model}
    cold_s: dict[str, float] = {}
    sessions: dict[str, Session] = {}
    for name in _order(number):
        start = perf_counter()
        sessions[name] = models[name].open(open_medium(models[name], source))
        sessions[name].ask(QUESTION, OPTIONS)
        cold_s[name] = perf_counter() - start
    again = [{name: _ask(sessions[name]) for name in _order(turn)} for turn in range(FOLLOW_UPS)]
    return _ratio(cold_s), [_ratio(seconds) for seconds in again]


def _order(number: int) -> tuple[str, str]:
    return ("plain", "recorded") if number % 2 else ("recorded", "plain")


def _ratio(seconds: dict[str, float]) -> float:
    return seconds["recorded"] / seconds["plain"]


def _ask(session: Session) -> float:
    start = perf_counter()
    session.ask(QUESTION, OPTIONS)
    return perf_counter() - start


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--media", type=Path, help="a file instead of made-up frames")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    found = check(arguments.bundle, arguments.media or MEDIUM, arguments.rounds)
    print(json.dumps({"device": environment.cpu_name(), **asdict(found)}, indent=1))


if __name__ == "__main__":
    main()
