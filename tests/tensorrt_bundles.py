"""Bundles for TensorRT-RTX, each made once a run."""

from __future__ import annotations

import shutil
from pathlib import Path

from exports import Exports, Silence


def tensorrt_bundle(exports: Exports, precision: str, name: str = "small", max_context: int = 2048) -> Path:
    """A checkpoint's bundle without plans. Not to be changed: others use it."""
    from filelock import FileLock
    from recipes import uniform
    from reflectrt.export.bundle import ExportPlan, export_bundle
    from reflectrt.export.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(exports.checkpoint(name))
    folder = exports.folder / f"{name}-tensorrt-{precision}"
    recipe = uniform(checkpoint, precision) if precision in ("int8", "fp8") else None
    with FileLock(folder.with_suffix(".made")):
        if not folder.exists():
            plan = ExportPlan("tensorrt-rtx", precision, max_context, recipe)
            export_bundle(checkpoint, folder, plan, Silence())
    return folder


def copied(bundle: Path, folder: Path) -> Path:
    """A copy that a test may build plans into."""
    return Path(shutil.copytree(bundle, folder / "bundle"))


class Quiet:
    """A build's progress, kept."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps = 0

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def phase(self, name: str, done: int, total: int) -> None:
        del name, done, total
        self.steps += 1
