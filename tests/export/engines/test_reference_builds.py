"""Plans of the reference checkpoint: every graph in every number format, each for another architecture."""

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

pytest.importorskip("tensorrt_rtx")
from reflectrt.bench.tensorrt_builds import reference_jobs, row
from reflectrt.export import bundle
from reflectrt.export.inputs import GraphConfig
from reflectrt.runtime.engines.tensorrt_library import load_library

pytestmark = [pytest.mark.trt, pytest.mark.slow]

PAIRS = [("fp16", "SM80"), ("int8", "SM86"), ("fp8", "SM89"), ("int4", "SM120"), ("bf16", "SM121")]


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Tracing is three quarters of these tests and differs with the activations' type alone."""
    trace, kept = bundle.trace, {}

    def remember(make_module: object, config: GraphConfig, name: str) -> ir.Model:
        key = name, config.dtype
        if key not in kept:
            kept[key] = trace(make_module, config, name)  # type: ignore[arg-type]
        return kept[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "trace", remember)
        yield


@pytest.mark.parametrize(("precision", "architecture"), PAIRS)
def test_the_reference_checkpoint_builds(tmp_path: Path, precision: str, architecture: str) -> None:
    """`row` holds each plan's ports, profiles, caches and kernels' types against contract and recipe."""
    jobs = reference_jobs(precision, tmp_path)
    rows = [row(load_library("tensorrt-rtx"), job, precision, architecture) for job in jobs]
    assert [(found.graph, found.error) for found in rows] == [
        (name, None) for name in ("vision", "embed", "decoder", "head")
    ]
