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
@pytest.mark.parametrize("name", ["small", "wide-head"])  # steps by ONNX Runtime, and by kernels of our own
def test_the_gpu_answers_as_the_cpu_does(
    exports: Exports, tmp_path_factory: pytest.TempPathFactory, name: str, precision: str
) -> None:
    folder = tmp_path_factory.mktemp("cuda") / precision
    export_bundle(Checkpoint.open(exports.checkpoint(name)), folder, ExportPlan("cuda", precision), Silence())
    on_gpu, on_cpu = reflectrt.load(folder, device="cuda"), reflectrt.load(exports.bundle(name), device="cpu")
    assert (on_gpu.manifest.graphs["decoder"].step_form is not None) == (name == "wide-head")
    agreement = compare(answers(on_gpu, colours(20)), answers(on_cpu, colours(20)))
    assert agreement.letters_equal_or_tied == 1
    assert min(agreement.reflection_cosine) > 0.999
