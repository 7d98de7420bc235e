"""Build plans ahead of time for every architecture and number format, and write down what came of it.

    python -m reflectrt.bench.tensorrt_builds bench/results/tensorrt_builds.json [--shape reference ...]

All graphs of a small random checkpoint and of the reference checkpoint, and single layers of the 7B shape; what a
results file has of other shapes stays. Needs TensorRT-RTX and no GPU. Built and inspected is not run: no figure here
says how fast a plan is, or that its numbers are right.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..export.bundle import ExportPlan, export_bundle
from ..export.checkpoint import Checkpoint
from ..export.engines.build import Built, Request, build
from ..export.engines.flavour import FP8_SINCE, capability
from ..export.engines.precision import check_precision, quantized_weights
from ..export.engines.profiles import Limits, profiles
from ..export.lower.tensorrt import lower
from ..export.quantize.plain import default_recipe, linear_weights
from ..export.recipe import FORMAT, FORMAT_MAJOR, FORMAT_MINOR, GraphRecipe, Recipe
from ..export.targets import ACTIVATIONS, TENSORRT_PRECISIONS
from ..runtime import contract
from ..runtime.bundle import open_bundle
from ..runtime.engines.tensorrt_library import Library, load_library
from ..runtime.errors import ReflectRTError
from .layer_shapes import GRAPHS, MODEL, SCHEMES, schemes, write_layer
from .random_checkpoint import RandomShape, make_checkpoint

ARCHITECTURES = ("SM80", "SM86", "SM89", "SM120", "SM121")
SMALL = RandomShape(heads=6, kv_heads=2, layers=2, seed=7)
REFERENCE = Path(__file__).parent.parent / "assets" / "reference"
CAPACITY = {"small": 4096, "reference": 8192, "7B layer": 8192}


@dataclass(frozen=True)
class Row:
    """One plan, or why there is none."""

    shape: str
    graph: str
    precision: str
    architecture: str
    megabytes: float | None = None
    seconds: float | None = None
    weights_megabytes: float | None = None
    scratch_megabytes: tuple[float, ...] = ()
    kernels: int | None = None
    error: str | None = None


class Silence:
    """An export's progress that nobody watches."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def weights(self, done: int, total: int) -> None:
        """Nothing."""


Job = tuple[str, Request, dict[str, str]]
"""Shape, what to build (for any architecture), scheme of each quantized weight."""


def small_jobs(precision: str, folder: Path) -> Iterator[Job]:
    """All graphs of a small random checkpoint."""
    return _checkpoint_jobs("small", make_checkpoint(folder / "checkpoint", like=SMALL), precision, folder)


def reference_jobs(precision: str, folder: Path) -> Iterator[Job]:
    """All graphs of the reference checkpoint."""
    return _checkpoint_jobs("reference", REFERENCE, precision, folder)


def _checkpoint_jobs(shape: str, source: Path, precision: str, folder: Path) -> Iterator[Job]:
    checkpoint, context = Checkpoint.open(source), CAPACITY[shape]
    plan = ExportPlan("tensorrt-rtx", precision, context, _recipe(checkpoint, precision))
    export_bundle(checkpoint, folder / "bundle", plan, Silence())
    bundle = open_bundle(folder / "bundle")
    for name, entry in bundle.manifest.graphs.items():
        capacity = context if name == contract.DECODER else 0
        chosen = profiles(name, bundle.manifest.model, Limits(context))
        activation, file = bundle.manifest.activation, bundle.file(entry.file)
        request = Request(name, file, entry.signature(), activation, capacity, chosen, "")
        yield shape, request, quantized_weights(bundle.manifest, name)


def layer_jobs(precision: str, folder: Path) -> Iterator[Job]:
    """The 7B shape's decoder layer and vision blocks."""
    return (layer_job(name, precision, folder) for name in GRAPHS)


def layer_job(name: str, precision: str, folder: Path) -> Job:
    """One of them."""
    dtype, rows = TENSORRT_PRECISIONS[precision], CAPACITY["7B layer"]
    file = write_layer(name, dtype, precision, lower, folder)
    signature = contract.signatures(MODEL.sizes())[name]
    capacity = rows if name == contract.DECODER else 0
    chosen = profiles(name, MODEL, Limits(rows))
    request = Request(name, file, signature, ACTIVATIONS[dtype], capacity, chosen, "")
    return "7B layer", request, schemes(file, precision)


JOBS = {"small": small_jobs, "reference": reference_jobs, "7B layer": layer_jobs}


def _recipe(checkpoint: Checkpoint, precision: str) -> Recipe | None:
    """Static schemes with one scale for all: the numbers mean nothing, kernels and sizes are those of a real recipe."""
    if precision not in ("int8", "fp8"):
        return default_recipe(checkpoint, precision)
    parts = {
        name: GraphRecipe(dict.fromkeys(weights, SCHEMES[precision]))
        for name, weights in linear_weights(checkpoint).items()
    }
    version = (FORMAT_MAJOR, FORMAT_MINOR)
    return Recipe(FORMAT, version, "", precision, parts, (), None, None)  # type: ignore[arg-type]  # one of two


def row(library: Library, job: Job, precision: str, architecture: str) -> Row:
    """Build and check one plan."""
    shape, template, weights = job
    request = Request(**{**vars(template), "architecture": architecture})
    try:
        built = build(library, request)
        if built.report is None:
            raise ReflectRTError("the builder did not say what is in the plan")
        check_precision(built.report, request.graph, weights, request.activation)
    except ReflectRTError as error:
        return Row(shape, request.graph, precision, architecture, error=str(error))
    return _measured(shape, request, precision, built)


def _measured(shape: str, request: Request, precision: str, built: Built) -> Row:
    def mb(size: int) -> float:
        return round(size / 1e6, 1)

    scratch = tuple(mb(size) for size in built.memory.scratch)
    kernels = len(built.report.layers) if built.report else None
    seconds, weights = round(built.seconds, 1), mb(built.memory.weights)
    names = (shape, request.graph, precision, request.architecture)
    return Row(*names, mb(built.size), seconds, weights, scratch, kernels)


def main() -> int:
    """Build everything and write the results after each plan."""
    parser = argparse.ArgumentParser(description="Build plans for every architecture and number format.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--shape", choices=JOBS, nargs="+", default=list(JOBS))
    arguments = parser.parse_args()
    results: Path = arguments.results
    library = load_library("tensorrt-rtx")
    known = json.loads(results.read_text())["plans"] if results.exists() else []
    rows = [Row(**plan) for plan in known if plan["shape"] not in arguments.shape]
    for shape in arguments.shape:
        for precision in TENSORRT_PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                for found in build_all(library, JOBS[shape](precision, Path(folder)), precision):
                    print(found, file=sys.stderr)
                    rows.append(found)
                    _write(results, library, rows)
    return int(any(found.error for found in rows))


def build_all(library: Library, jobs: Iterable[Job], precision: str) -> Iterator[Row]:
    """Every job for every architecture that has the precision."""
    for job in jobs:
        for architecture in ARCHITECTURES:
            if precision != "fp8" or capability(architecture) >= FP8_SINCE:
                yield row(library, job, precision, architecture)


def _write(results: Path, library: Library, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda found: list(JOBS).index(found.shape))
    head = {
        "library": f"{library.name} {library.version}",
        "machine": f"{platform.machine()}, no GPU",
        "python": platform.python_version(),
        "capacity": CAPACITY,
        "limits": {key: value for key, value in vars(Limits(0)).items() if key != "capacity"},
    }
    results.write_text(json.dumps(head | {"plans": [asdict(found) for found in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
