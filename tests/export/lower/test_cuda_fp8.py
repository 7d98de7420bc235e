"""An fp8 decoder's long runs: one layer up to its MLP as a graph, and what the MLPs round by."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports, Silence
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.forms import lower_forms
from reflectrt.export.lower import cuda_fp8
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.qdq import FP8_BY_TENSOR, TYPES
from reflectrt.export.recipe import Recipe
from reflectrt.export.steps import step_form, step_weights
from reflectrt.export.targets import TARGETS
from reflectrt.export.weights import lift_weights
from reflectrt.runtime.manifest import StepForm

WIDE, LAYERS = "wide-head", 3
MLP = "model.language_model.layers.1.mlp"


def decoder(exports: Exports, recipe: Recipe | None = None, dtype: str = "bfloat16") -> ir.Model:
    """A decoder quantized as the CUDA target wants it, each weight with one scale."""
    model = external_data.load_to_model(ir.load(exports.portable("decoder", WIDE, dtype)))
    quantize(model, recipe or fp8(exports), "decoder", FP8_BY_TENSOR)
    return model


def fp8(exports: Exports, scale: float = 0.05) -> Recipe:
    return uniform(Checkpoint.open(exports.checkpoint(WIDE)), "fp8", scale)


def test_an_mlp_is_divided_by_its_recipe_s_scales(exports: Exports) -> None:
    assert cuda_fp8.mlp_steps(decoder(exports, fp8(exports, 0.25)), LAYERS) == ((0.25, 0.25),) * LAYERS


def test_a_decoder_without_fp8_activations_has_no_long_form(exports: Exports) -> None:
    model = external_data.load_to_model(ir.load(exports.portable("decoder", WIDE, "bfloat16")))
    assert cuda_fp8.mlp_steps(model, LAYERS) is None


def test_widths_that_cublas_does_not_read_have_none(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_fp8, "MULTIPLE", 1000)
    assert cuda_fp8.mlp_steps(decoder(exports), LAYERS) is None


def test_an_mlp_with_a_layer_left_whole_has_none(exports: Exports) -> None:
    recipe = fp8(exports)
    del recipe.graphs["decoder"].linears[f"{MLP}.up_proj.weight"]
    assert cuda_fp8.mlp_steps(decoder(exports, recipe), LAYERS) is None


def test_the_graph_is_one_layer_up_to_what_its_mlp_reads(exports: Exports) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint(WIDE))
    forms = lower_forms(decoder(exports), "decoder", TARGETS["cuda"], checkpoint.text)
    assert forms.long is not None and forms.steps is not None
    operators = [node.op_type for node in forms.long.graph]
    assert operators.count("MatMulBlockQuantizedFp8Weight") == 2
    assert operators.count("GroupQueryAttention") == 1
    assert "QuickGelu" not in operators
    assert [value.name for value in forms.long.graph.outputs] == [
        *("mlp_inputs", "key_cache_out.0", "value_cache_out.0", "residual")
    ]
    read = {str(value.name) for value in forms.long.graph.inputs} - {"embeddings", "positions", "past_length"}
    assert read - {"key_cache.0", "value_cache.0"} <= set(forms.steps.layers[0].names())
    assert forms.long.metadata_props["reflectrt.row_bytes"] != "0"


def test_the_graph_gives_the_portable_layer_s_numbers(exports: Exports) -> None:
    """In float32 on the CPU, without fp8: the normed sum and the sum that lead to the first layer's MLP."""
    checkpoint = Checkpoint.open(exports.checkpoint(WIDE))
    portable = external_data.load_to_model(ir.load(exports.portable("decoder", WIDE)))
    lowered = TARGETS["cuda"].lower(portable.clone())
    steps = step_form(lowered, checkpoint.text) or _float_form(exports, checkpoint)
    assert TARGETS["cuda"].lower_rows is not None
    TARGETS["cuda"].lower_rows(lowered)
    weights = lift_weights(lowered, step_weights(steps))
    layer = cuda_fp8.layer_attention(lowered, steps)
    random, facts, tokens = np.random.default_rng(0), checkpoint.text, 6
    inputs = {
        "embeddings": random.normal(size=(1, tokens, facts.hidden)).astype(np.float32),
        "positions": np.tile(np.arange(tokens), (3, 1)),
        "past_length": np.array([0]),
    }
    cache = np.zeros((1, facts.kv_heads, 16, facts.head_dim), np.float32)
    inputs |= {f"{kind}_cache.{index}": cache.copy() for index in range(facts.layers) for kind in ("key", "value")}
    norm = next(node for node in portable.graph if any(v and v.name == steps.layers[0].mlp_norm for v in node.inputs))
    portable.graph.outputs[:] = [norm.outputs[0], norm.inputs[0]]
    wanted = _run(portable, inputs)
    given = {str(value.name): inputs.get(str(value.name)) for value in layer.graph.inputs}
    given |= {name: weights[name].numpy() for name, value in given.items() if value is None}
    normed, _, _, total = _run(layer, {name: value for name, value in given.items() if value is not None})
    np.testing.assert_allclose(normed, wanted[0], atol=2e-5)
    np.testing.assert_allclose(total, wanted[1], atol=2e-5)


def _float_form(exports: Exports, checkpoint: Checkpoint) -> StepForm:
    """The names, from the bfloat16 decoder: kernels take no float32."""
    model = external_data.load_to_model(ir.load(exports.portable("decoder", WIDE, "bfloat16")))
    form = step_form(TARGETS["cuda"].lower(model), checkpoint.text)
    assert form is not None
    return form


def _run(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    read = {port.name for port in session.get_inputs()}
    return list(session.run(None, {name: value for name, value in inputs.items() if name in read}))


def test_a_bundle_s_mlp_weights_have_one_scale_each(exports: Exports, tmp_path: Path) -> None:
    """cuBLASLt multiplies a whole weight by its first scale."""
    checkpoint, recipe = Checkpoint.open(exports.checkpoint(WIDE)), fp8(exports)
    folder = tmp_path / "bundle"
    entry = export_bundle(checkpoint, folder, ExportPlan("cuda", "fp8", recipe=recipe), Silence()).graphs["decoder"]
    assert entry.long_form is not None and entry.long_form.tokens == cuda_fp8.LONG_RUN
    assert (folder / entry.long_form.file).exists()
    scales = [weight for weight in entry.weights if ".mlp." in weight.name and "_scale" in weight.name]
    assert len(scales) == 3 * LAYERS
    for weight in scales:
        numbers = np.fromfile(folder / weight.file, np.float32, weight.nbytes // 4, offset=weight.offset)
        assert (numbers == numbers[0]).all()


def test_one_scale_for_a_weight_costs_no_digits() -> None:
    """Channels of magnitudes 1 to 200 apart: the error of a common scale is that of a scale each."""
    random = np.random.default_rng(0)
    weight = (random.normal(size=(256, 64)) * np.geomspace(1, 200, 64)).astype(np.float32)
    errors = []
    for types in (TYPES, FP8_BY_TENSOR):
        scale = types["fp8"].scale(weight, 0)
        back = types["fp8"].quantize(weight, scale[None]).astype(np.float32) * scale
        errors.append(float(np.sqrt((((back - weight) ** 2).mean(0) / (weight**2).mean(0)).mean())))
    assert len(set(FP8_BY_TENSOR["fp8"].scale(weight, 0))) == 1
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
