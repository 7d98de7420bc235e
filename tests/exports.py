"""Bundles of the random checkpoints. An export takes ten seconds, nearly all of them tracing: one a run of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reflectrt.runtime.contract import Port, Signature

if TYPE_CHECKING:
    import onnx_ir as ir


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

    def portable(self, graph: str, name: str = "small", dtype: str = "float32", capacity: int | None = None) -> Path:
        """A graph as it is traced, before any target's lowering; `capacity` makes the caches' one a fixed number."""
        import onnx_ir as ir
        import torch
        from filelock import FileLock
        from reflectrt.export.bundle import _model_facts
        from reflectrt.export.checkpoint import Checkpoint
        from reflectrt.export.graphs.makers import graph_makers
        from reflectrt.export.inputs import GraphConfig
        from reflectrt.export.trace import trace
        from reflectrt.export.weights import bind_weights, write_weights
        from reflectrt.runtime import contract

        checkpoint = Checkpoint.open(self.checkpoint(name))
        folder = self.folder / f"{name}-{graph}-{dtype}-{capacity}"
        element = getattr(torch, dtype)
        makers = graph_makers(checkpoint.text, checkpoint.vision, checkpoint.reflection, element)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "graph.onnx").exists():
                folder.mkdir()
                signature = contract.signatures(_model_facts(checkpoint, 1).sizes())[graph]
                if capacity:
                    signature = with_capacity(signature, capacity)
                model = trace(makers[graph], GraphConfig(signature, element), graph)
                bind_weights(model, checkpoint)
                write_weights(model, folder, "graph.onnx.data", lambda _: None)
                ir.save(model, folder / "graph.onnx")
        return folder / "graph.onnx"

    def traced(self, graph: str) -> ir.Model:
        """A graph of the small checkpoint as it is before its weights are bound."""
        import onnx_ir as ir

        model = ir.load(self.portable(graph))
        for name, value in model.graph.initializers.items():
            if name.endswith((".weight", ".bias")):
                value.const_value = None
        return model


def with_capacity(signature: Signature, rows: int) -> Signature:
    """The signature with caches of a fixed number of rows, which TensorRT asks for."""

    def fixed(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(
            replace(port, axes=tuple(rows if axis == "capacity" else axis for axis in port.axes)) for port in ports
        )

    return Signature(fixed(signature.inputs), fixed(signature.outputs))
