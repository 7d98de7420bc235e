"""Plans of single layers of the published 7B model's shape: each number format and architecture once."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.importorskip("tensorrt_rtx")
from reflectrt.bench.tensorrt_builds import layer_job, row
from reflectrt.runtime.engines.tensorrt_library import load_library

pytestmark = [pytest.mark.trt, pytest.mark.slow]


@pytest.mark.parametrize(
    ("graph", "precision", "architecture"),
    [
        ("vision", "fp16", "SM80"),
        ("vision", "int8", "SM86"),
        ("decoder", "bf16", "SM89"),
        ("decoder", "fp8", "SM120"),
        ("decoder", "int4", "SM121"),
    ],
)
def test_layers_of_the_7b_shape_build(tmp_path: Path, graph: str, precision: str, architecture: str) -> None:
    with TemporaryDirectory(dir=tmp_path) as folder:  # pytest would keep half a gigabyte for three runs
        job = layer_job(graph, precision, Path(folder))
        found = row(load_library("tensorrt-rtx"), job, precision, architecture)
    assert found.error is None
    assert found.weights_megabytes and found.weights_megabytes > 80
