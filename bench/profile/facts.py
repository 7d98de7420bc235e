"""What was measured, as a report names it."""

from __future__ import annotations

from pathlib import Path

from ...runtime.options import AskOptions, reflection_steps
from ...runtime.session import Model
from .media import open_medium
from .report import BundleFacts, WorkloadFacts
from .scenario import FREE_TOKENS, Round, Subject, Workload, prompt_tokens, question_of


def bundle(model: Model) -> BundleFacts:
    """A bundle by its hash and what its manifest says."""
    manifest, record = model.manifest, model.manifest.verification
    return BundleFacts(
        path=str(model.bundle.path),
        sha256=model.bundle.sha256,
        target=manifest.target,
        precision=manifest.precision,
        source=f"{manifest.source.name} ({manifest.source.fingerprint[:12]})",
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        verified=record is not None and record.passed,
    )


def workload(turn: Round, subject: Subject, work: Workload, warm_up: int, runs: int) -> WorkloadFacts:
    """What a round asked."""
    medium = open_medium(subject.plain, work.source)
    question = question_of(subject.plain, medium.kind, work.question_tokens)
    source = work.source
    return WorkloadFacts(
        medium=str(source) if isinstance(source, Path) else f"synthetic {source.width}x{source.height}",
        kind=medium.kind,
        frames=medium.frames,
        grid=medium.grid,
        visual_tokens=medium.visual_tokens,
        question_tokens=prompt_tokens(subject.plain, question, medium.kind),
        context_tokens=turn.context_tokens,
        reflection_steps=reflection_steps(subject.plain.manifest, medium.kind, AskOptions(steps=work.steps)),
        answer_tokens=FREE_TOKENS,
        warm_up=warm_up,
        runs=runs,
    )
