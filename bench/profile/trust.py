"""How far a profile can be trusted on this machine: what recording costs, and whether two profiles agree.

    python -m reflectrt.bench.profile.trust BUNDLE [--rounds N]

Overhead is the ratio of the same questions with and without the recorder, taken in turn, as the median over pairs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from ...runtime import load
from ...runtime.session import Model
from . import environment
from .measure import Plan, measure
from .media import Synthetic, open_medium
from .report import Profile
from .scenario import OPTIONS, Subject, Workload

MEDIUM = Synthetic(8, 640, 360)
QUESTION = "Which one?"
FOLLOW_UPS = 5


@dataclass(frozen=True)
class Trust:
    """Shares of 1: what recording adds, and by how much the medians of two profiles differ (larger over smaller)."""

    cold_overhead: float
    follow_up_overhead: float
    difference: dict[str, float]


def check(bundle: Path, rounds: int) -> Trust:
    """Compare plain with recorded questions, then two whole profiles."""
    plain = load(bundle)
    pairs = [_pair(plain, Subject(plain), number) for number in range(rounds + 2)][2:]
    plan = Plan(Workload(MEDIUM, 64, None), runs=rounds, unverified=True)
    first, second = (measure([bundle], plan).report.profiles[0] for _ in range(2))
    medians = [_medians(found) for found in (first, second)]
    return Trust(
        cold_overhead=median(recorded[0] / bare[0] for bare, recorded in pairs) - 1,
        follow_up_overhead=median(recorded[1] / bare[1] for bare, recorded in pairs) - 1,
        difference={name: _apart(first_s, medians[1][name]) for name, first_s in medians[0].items()},
    )


def _medians(found: Profile) -> dict[str, float]:
    return {each.name: each.p50_s for each in found.stages} | {each.name: each.p50_s for each in found.totals}


def _apart(first_s: float, second_s: float) -> float:
    return max(first_s, second_s) / min(first_s, second_s) - 1


Seconds = tuple[float, float]


def _pair(plain: Model, subject: Subject, number: int) -> tuple[Seconds, Seconds]:
    """Seconds without and with the recorder; who goes first changes from pair to pair."""
    if number % 2:
        bare, recorded = _ask(plain), _ask(subject.model)
    else:
        recorded, bare = _ask(subject.model), _ask(plain)
    return bare, recorded


def _ask(model: Model) -> Seconds:
    """Seconds of a cold question and of a follow-up (mean of five)."""
    start = perf_counter()
    session = model.open(open_medium(model, MEDIUM))
    session.ask(QUESTION, OPTIONS)
    cold_s = perf_counter() - start
    start = perf_counter()
    for _ in range(FOLLOW_UPS):
        session.ask(QUESTION, OPTIONS)
    return cold_s, (perf_counter() - start) / FOLLOW_UPS


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    found = check(arguments.bundle, arguments.rounds)
    print(json.dumps({"device": environment.cpu_name(), **asdict(found)}, indent=1))


if __name__ == "__main__":
    main()
