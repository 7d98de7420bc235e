"""Bundles of the random checkpoints. An export takes ten seconds, nearly all of them tracing: one a run of each."""

from dataclasses import dataclass
from pathlib import Path


class Silence:
    """An export's progress that nobody watches."""

    def stage(self, name: str) -> None:
        pass

    def weights(self, done: int, total: int) -> None:
        pass


@dataclass(frozen=True)
class Exports:
    """A folder of checkpoints and bundles that test processes share."""

    folder: Path

    def checkpoint(self, name: str = "small") -> Path:
        """A random checkpoint of `checkpoints.SHAPES`. Not to be changed: others use it."""
        from checkpoints import checkpoint  # here: most tests need no torch
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{name}-checkpoint.lock"):
            if not (self.folder / f"{name}-checkpoint.made").exists():
                checkpoint(self.folder, name)
                (self.folder / f"{name}-checkpoint.made").touch()
        return self.folder / name

    def bundle(self, name: str = "small") -> Path:
        """Its bundle. Not to be changed: others use it."""
        from filelock import FileLock
        from reflectrt.export.bundle import ExportPlan, export_bundle
        from reflectrt.export.checkpoint import Checkpoint

        source, target = self.checkpoint(name), self.folder / f"{name}-bundle"
        with FileLock(self.folder / f"{name}-bundle.lock"):
            if not target.exists():
                export_bundle(Checkpoint.open(source), target, ExportPlan(), Silence())
        return target
