"""PyTorch beside the bundle: the same cold question through the loop of `bench/torch_loop.py`, in two forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.errors import UsageError
from ...runtime.options import AskOptions, reflection_steps
from .media import open_medium
from .report import Rival
from .scenario import Subject, Workload, question_of
from .stages import timing

if TYPE_CHECKING:
    from ..torch_loop import LoopTimes, TorchLoop

MAX_RUNS = 5
"""Rounds of PyTorch at most: it takes several times as long as the bundle, and is not what is being tuned."""


@dataclass
class Contender:
    """One form of the loop, with its times so far."""

    name: str
    loop: TorchLoop
    dummies: int
    times: list[LoopTimes] = field(default_factory=list)

    def round(self, subject: Subject, work: Workload) -> LoopTimes:
        """The cold question of `subject`, from the file to the answer; media are read by the bundle's own reader."""
        from ..reference import Medium

        start = perf_counter()
        medium = open_medium(subject.model, work.source)
        patches = np.concatenate(list(medium.patches(medium.grid[0])))
        read_s = perf_counter() - start
        question = question_of(subject.model, medium.kind, work.question_tokens)
        steps = reflection_steps(subject.model.manifest, medium.kind, AskOptions(steps=work.steps))
        given = Medium(medium.kind, patches, (len(patches), *medium.grid[1:]))
        times = self.loop.ask([given], question.text, question.options, steps, self.dummies)
        times.read_s, times.total_s = read_s, times.total_s + read_s
        return times


def contenders(checkpoint: str, dtype: str, threads: int) -> list[Contender]:
    """Both forms of the loop over one model. Raises UsageError where PyTorch is not installed."""
    try:
        from ...export.checkpoint import Checkpoint
        from ..torch_loop import PUBLISHED_DUMMIES, TorchLoop
    except ModuleNotFoundError as error:
        raise UsageError(f"--against needs {error.name}; run `pip install 'reflectrt[export]'`") from None
    loop = TorchLoop(Checkpoint.open(checkpoint).path, dtype, threads)
    return [
        Contender("PyTorch as published", loop, PUBLISHED_DUMMIES),
        Contender("PyTorch without dummies", loop, 0),
    ]


def rival_report(contender: Contender, dtype: str, ours_s: float, option: str | None) -> Rival:
    """The medians of a contender's rounds, beside our cold question's."""
    times = contender.times
    total = timing([each.total_s for each in times])
    return Rival(
        name=contender.name,
        dtype=dtype,
        samples=total.samples,
        p50_s=total.p50_s,
        p90_s=total.p90_s,
        p99_s=total.p99_s,
        read_s=float(np.median([each.read_s for each in times])),
        vision_s=float(np.median([each.vision_s for each in times])),
        prefill_s=float(np.median([each.prefill_s for each in times])),
        step_s=float(np.median([seconds for each in times for seconds in each.step_s])),
        decoder_runs=times[0].decoder_runs,
        same_option=option is not None and all("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[each.option] == option for each in times),
        ratio=total.p50_s / ours_s,
    )
