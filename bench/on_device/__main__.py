"""`python -m reflectrt.bench.on_device BUNDLE --against CPU_BUNDLE --out result.json`."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ...commands.arguments import Parser, positive
from ...commands.build import BuildProgress
from ...export.engines.plans import BuildOptions, build_plans
from ...runtime import load
from ...runtime.bundle import open_bundle
from ...runtime.engines.cuda import Gpu
from ...runtime.engines.tensorrt_library import load_library
from ...runtime.plans import Machine, runnable
from .compare import Outcome, compare, expected
from .layers import plan_layers
from .steps import Figures, run_steps
from .timing import time_model


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    bundle: Path
    against: Path
    architecture: str | None
    capacity: int | None
    frames: int
    runs: int


class DeviceRun:
    """The steps, which hand each other what they found."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._expected: list[Outcome] = []

    def machine(self) -> Figures:
        """What this is: processor, system, library; the GPU is asked for later, so that this much is always told."""
        manifest = open_bundle(self.request.bundle).manifest
        library = load_library(manifest.target)  # type: ignore[arg-type]  # refused by name where it is neither
        return {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "reflectrt": version("reflectrt"),
            "library": f"{library.name} {library.version}",
            "target": manifest.target,
            "precision": manifest.precision,
            "checkpoint": manifest.source.fingerprint,
        }

    def reference(self) -> Figures:
        """ONNX Runtime's answers on the CPU."""
        self._expected = expected(self.request.against)
        return {"media": len(self._expected)}

    def build(self) -> Figures:
        """Plans for this GPU, or for the architecture that was named."""
        request = self.request
        architecture = request.architecture or _local_architecture()
        capacities = (request.capacity,) if request.capacity else ()
        progress = BuildProgress()
        try:
            manifest = build_plans(open_bundle(request.bundle), BuildOptions((architecture,), capacities), progress)
        finally:
            progress.clear()
        plans = [asdict(plan) | {"bytes": manifest.files[plan.file].size} for plan in manifest.plans]
        return {"plans": [plan for plan in plans if plan["architecture"] == architecture]}

    def gpu(self) -> Figures:
        """The GPU and its driver."""
        return asdict(Gpu().facts())

    def layers(self) -> Figures:
        """What is in the plans for this GPU."""
        bundle = open_bundle(self.request.bundle)
        library = load_library(bundle.manifest.target)  # type: ignore[arg-type]  # as above
        machine = Machine(library.name, library.version, _local_architecture())
        return plan_layers(library, bundle.path, [plan for plan in bundle.manifest.plans if runnable(plan, machine)])

    def verify(self) -> Figures:
        """The plans against ONNX Runtime."""
        return compare(load(self.request.bundle), self._expected)

    def timing(self) -> Figures:
        """Seconds."""
        return time_model(load(self.request.bundle), self.request.frames, self.request.runs)


def _local_architecture() -> str:
    major, minor = Gpu().facts().capability
    return f"SM{major}{minor}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps, write the JSON; 0 where every step is done."""
    parser = Parser(prog="reflectrt.bench.on_device", description="Build, verify and time a bundle on this device.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="exported with --target tensorrt or tensorrt-rtx")
    parser.add_argument("--against", metavar="CPU_BUNDLE", type=Path, required=True, help="the same checkpoint's")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the JSON to send back")
    parser.add_argument("--architecture", metavar="SM", help="build for this instead of the GPU that is there")
    parser.add_argument("--capacity", metavar="N", type=positive, help="tokens of the KV cache")
    parser.add_argument("--frames", metavar="N", type=positive, default=16, help="of the timed video (default: 16)")
    parser.add_argument("--runs", metavar="N", type=positive, default=5, help="timed runs (default: 5)")
    found = parser.parse_args(arguments)
    if found.frames < 2:
        parser.error(f"--frames {found.frames} makes no video, pass 2 or more")
    out: Path = found.out
    del found.out
    run = DeviceRun(Request(**vars(found)))
    steps = {
        "machine": run.machine,
        "reference": run.reference,
        "build": run.build,
        "gpu": run.gpu,
        "layers": run.layers,
        "verify": run.verify,
        "timing": run.timing,
    }
    results = run_steps(steps, lambda name: print(f"{name} ...", file=sys.stderr, flush=True))
    out.write_text(
        json.dumps({"format": "reflectrt-on-device", "steps": [asdict(r) for r in results]}, indent=1) + "\n"
    )
    for result in results:
        print(f"{result.name:10} {result.status} {result.reason}".rstrip(), file=sys.stderr)
    return int(any(result.status != "done" for result in results))


if __name__ == "__main__":
    sys.exit(main())
