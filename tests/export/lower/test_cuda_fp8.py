from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from exports import Exports, Silence
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.forms import lower_forms
from reflectrt.export.lower import cuda, cuda_fp8
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.qdq import FP8_BY_TENSOR
from reflectrt.export.recipe import Recipe
from reflectrt.export.targets import TARGETS

LAYERS = 2
MLP = "model.language_model.layers.1.mlp"


class GemmFloat8(OpRun):  # type: ignore[misc]  # untyped
    """y = scale_a * scale_b * (a @ b.T), as onnxruntime's contrib operator documents it."""

    op_domain = "com.microsoft"

    def _run(self, a, b, _c, scale_a, scale_b, transB=0, dtype=1):  # type: ignore[no-untyped-def]
        assert transB == 1
        assert a.dtype == b.dtype == ml_dtypes.float8_e4m3fn
        product = (a.astype(np.float32) @ b.astype(np.float32).T) * scale_a * scale_b
        return (product.astype({10: np.float16, 16: ml_dtypes.bfloat16}[dtype]),)


class QuickGelu(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x, alpha=1.702):  # type: ignore[no-untyped-def]
        return ((x / (1 + np.exp(-alpha * x.astype(np.float32)))).astype(x.dtype),)


def decoder(exports: Exports, recipe: Recipe | None = None) -> ir.Model:
    """A bfloat16 decoder quantized as the CUDA target wants it, each weight with one scale."""
    model = external_data.load_to_model(ir.load(exports.portable("decoder", dtype="bfloat16")))
    quantize(model, recipe or uniform(Checkpoint.open(exports.checkpoint()), "fp8"), "decoder", FP8_BY_TENSOR)
    return model


def part(model: ir.Model, first: ir.Value, last: ir.Value) -> ir.Model:
    """What lies between two values of a graph, as a model of its own."""
    x = ir.Value(name="x", shape=first.shape, type=first.type)
    first.replace_all_uses_with(x)
    nodes: list[ir.Node] = []

    def visit(value: ir.Value | None) -> None:
        node = value.producer() if value is not None else None
        if node is not None and node not in nodes:
            for source in node.inputs:
                visit(source)
            nodes.append(node)

    visit(last)
    weights = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
    known = {str(value.name) for value in weights}
    model.graph.outputs[:] = [last]
    model.graph.remove([node for node in model.graph if node not in nodes])
    model.graph.inputs[:] = [x]
    for name in [name for name in model.graph.initializers if name not in known]:
        del model.graph.initializers[name]
    return model


def evaluate(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    session = ReferenceEvaluator(proto, new_ops=[GemmFloat8, QuickGelu])
    return np.asarray(session.run(None, {proto.graph.input[0].name: x})[0]).astype(np.float32)


def named(model: ir.Model, suffix: str) -> ir.Node:
    return next(node for node in model.graph for value in node.inputs if value and suffix in str(value.name))


def test_long_runs_round_the_mlps_activations_and_nothing_else(exports: Exports) -> None:
    lowered = cuda.lower_long(decoder(exports))
    assert lowered is not None
    counts = Counter(node.op_type for node in lowered.graph)
    assert counts["GemmFloat8"] == 3 * LAYERS
    assert counts["MatMulBlockQuantizedFp8Weight"] == 2 * LAYERS  # attention's: its products are too small to gain
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == counts["MatMul"] == 0
    assert lowered.metadata_props["reflectrt.row_bytes"] != "0"


def test_gate_and_up_share_one_rounded_activation(exports: Exports) -> None:
    lowered = cuda.lower_long(decoder(exports))
    assert lowered is not None
    read = Counter(node.inputs[0] for node in lowered.graph if node.op_type == "GemmFloat8")
    assert sorted(read.values()) == sorted([2, 1] * LAYERS)


@pytest.mark.parametrize(("scale", "bound"), [(2.0**-8, 0.05), (2.0**-6, 0.05), (0.01, 0.1)])
def test_an_mlp_gives_the_quantized_graph_s_numbers(exports: Exports, scale: float, bound: float) -> None:
    """A power of two stays what it is, and float16 inside differs from bfloat16; another scale rounds other numbers."""
    recipe = uniform(Checkpoint.open(exports.checkpoint()), "fp8", scale)
    plain, lowered = decoder(exports, recipe), cuda.lower_long(decoder(exports, recipe))
    assert lowered is not None
    last = next(node for node in plain.graph if node.op_type == "MatMul" and f"{MLP}.down_proj" in str(node.name))
    norm_weight = f"{MLP.removesuffix('mlp')}post_attention_layernorm.weight"
    norm = named(plain, norm_weight)
    x = norm.inputs[0]
    assert x is not None
    wanted = part(plain, x, last.outputs[0])
    fused = named(lowered, f"{norm_weight}.fp8")
    assert fused.op_type == "SkipSimplifiedLayerNormalization"
    reshape = next(node for node in lowered.graph if node.outputs[0].name == last.outputs[0].name)
    rows = fused.outputs[0]
    found = part(lowered, rows, reshape.outputs[0])

    values = np.random.default_rng(0).normal(size=(1, 6, 48)).astype(ml_dtypes.bfloat16)
    normed = values.astype(np.float32)
    normed /= np.sqrt((normed**2).mean(-1, keepdims=True) + 1e-6)
    weight = fused.inputs[2]
    assert weight is not None and weight.const_value is not None
    normed = (normed * weight.const_value.numpy().astype(np.float32)).astype(ml_dtypes.bfloat16)
    ours, theirs = evaluate(found, normed), evaluate(wanted, values)
    assert ours.shape == theirs.shape == (1, 6, 48)
    error = np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())
    assert error < bound


def test_a_norm_is_divided_by_a_power_of_two(exports: Exports) -> None:
    plain, lowered = decoder(exports), cuda.lower_long(decoder(exports))
    assert lowered is not None
    for layer in range(LAYERS):
        name = f"model.language_model.layers.{layer}.post_attention_layernorm.weight"
        before, after = plain.graph.initializers[name], lowered.graph.initializers[f"{name}.fp8"]
        assert before.const_value is not None and after.const_value is not None
        numbers = [value.const_value.numpy().astype(np.float32) for value in (before, after) if value.const_value]
        np.testing.assert_array_equal(numbers[0] / numbers[1], 0.0625)  # the scale is 0.05


def test_a_decoder_without_fp8_activations_has_one_form(exports: Exports) -> None:
    model = external_data.load_to_model(ir.load(exports.portable("decoder", dtype="bfloat16")))
    assert cuda.lower_long(model) is None


def test_widths_that_the_kernel_does_not_read_stay(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_fp8, "MULTIPLE", 1024)
    assert cuda.lower_long(decoder(exports)) is None


def test_an_mlp_with_a_layer_left_whole_stays(exports: Exports) -> None:
    recipe = uniform(Checkpoint.open(exports.checkpoint()), "fp8")
    linears = recipe.graphs["decoder"].linears
    del linears[f"{MLP}.up_proj.weight"]
    lowered = cuda.lower_long(decoder(exports, recipe))
    assert lowered is not None
    assert Counter(node.op_type for node in lowered.graph)["GemmFloat8"] == 3 * (LAYERS - 1)


def test_both_forms_read_the_same_weights_as_inputs(exports: Exports) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    recipe = uniform(checkpoint, "fp8")
    forms = lower_forms(decoder(exports, recipe), "decoder", TARGETS["cuda"], recipe)
    assert forms.long is not None and len(forms.shared) == 5 * LAYERS
    for form in (forms.short, forms.long):
        inputs = {str(value.name): value for value in form.graph.inputs}
        assert forms.shared.keys() <= inputs.keys()
        assert not forms.shared.keys() & form.graph.initializers.keys()
        assert not [value for value in form.graph.initializers.values() if value.dtype == ir.DataType.FLOAT8E4M3FN]


def test_a_bundle_has_each_fp8_weight_once_where_the_manifest_says(exports: Exports, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    recipe = uniform(checkpoint, "fp8")
    folder = tmp_path / "bundle"
    manifest = export_bundle(checkpoint, folder, ExportPlan("cuda", "fp8", recipe=recipe), Silence())
    entry = manifest.graphs["decoder"]
    assert entry.long_form is not None and entry.long_form.tokens == cuda_fp8.LONG_RUN
    assert set(entry.files()) <= set(manifest.files)
    forms = lower_forms(decoder(exports, recipe), "decoder", TARGETS["cuda"], recipe)
    assert {weight.name for weight in entry.weights} == forms.shared.keys()
    for weight in entry.weights:
        with (folder / weight.file).open("rb") as file:
            file.seek(weight.offset)
            assert file.read(weight.nbytes) == forms.shared[weight.name].tobytes()
        assert weight.offset % 4096 == 0


def test_one_scale_for_a_weight_costs_no_digits() -> None:
    """Channels of magnitudes 1 to 200 apart: the error of a common scale is that of a scale each."""
    random = np.random.default_rng(0)
    weight = (random.normal(size=(256, 64)) * np.geomspace(1, 200, 64)).astype(np.float32)
    from reflectrt.export.quantize.qdq import TYPES

    errors = []
    for types in (TYPES, FP8_BY_TENSOR):
        scale = types["fp8"].scale(weight, 0)
        back = types["fp8"].quantize(weight, scale[None]).astype(np.float32) * scale
        errors.append(float(np.sqrt((((back - weight) ** 2).mean(0) / (weight**2).mean(0)).mean())))
    assert len(set(FP8_BY_TENSOR["fp8"].scale(weight, 0))) == 1
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_a_scale_for_each_channel_is_refused(exports: Exports) -> None:
    model = external_data.load_to_model(ir.load(exports.portable("decoder", dtype="bfloat16")))
    quantize(model, uniform(Checkpoint.open(exports.checkpoint()), "fp8"), "decoder")
    lowered = cuda.lower_long(model)
    assert lowered is not None
    with pytest.raises(ValueError, match="GemmFloat8 takes one for all"):
        lowered.graph.initializers[f"{MLP}.down_proj.weight_step"].const_value.numpy()  # type: ignore[union-attr]
