"""On a machine with an NVIDIA GPU and onnxruntime-gpu: the GPU's answers are the CPU's."""

import onnxruntime as ort
import pytest
import reflectrt
from exports import Exports, Silence
from reflectrt.bench.gpu.parity import answers, colours, compare
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA here"),
]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_gpu_answers_as_the_cpu_does(
    exports: Exports, tmp_path_factory: pytest.TempPathFactory, precision: str
) -> None:
    folder = tmp_path_factory.mktemp("cuda") / precision
    export_bundle(Checkpoint.open(exports.checkpoint()), folder, ExportPlan("cuda", precision), Silence())
    on_gpu = reflectrt.load(folder, device="cuda")
    agreement = compare(
        answers(on_gpu, colours(20)), answers(reflectrt.load(exports.bundle(), device="cpu"), colours(20))
    )
    assert agreement.letters_equal_or_tied == 1
    assert min(agreement.reflection_cosine) > 0.999
