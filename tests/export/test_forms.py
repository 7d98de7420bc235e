"""What several forms of a decoder read is stored once, where the manifest says."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from exports import Exports, Silence
from recipes import uniform
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.forms import Forms, lower_forms
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.targets import TARGETS
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.manifest import StoredWeight

WIDE = "wide-head"
OUTPUT = "model.language_model.layers.1.self_attn.o_proj.weight"


def stored(folder: Path, weight: StoredWeight) -> bytes:
    with (folder / weight.file).open("rb") as file:
        file.seek(weight.offset)
        return file.read(weight.nbytes)


def test_a_bundle_has_the_checkpoint_s_matrices_as_inputs_of_its_decoder(exports: Exports, tmp_path: Path) -> None:
    import torch

    checkpoint, folder = Checkpoint.open(exports.checkpoint(WIDE)), tmp_path / "bundle"
    manifest = export_bundle(checkpoint, folder, ExportPlan("cuda", "bf16"), Silence())
    assert open_bundle(folder).manifest == manifest
    entry = manifest.graphs["decoder"]
    assert entry.step_form is not None and entry.files() == ("decoder.onnx", "decoder_shared.data")
    assert "decoder.onnx.data" not in manifest.files
    for weight in entry.weights:
        stem, _, kind = weight.name.rpartition(".")
        before, _, modules = stem.rpartition(".")
        parts = [checkpoint.read(f"{before}.{module}.{kind}").to(torch.bfloat16) for module in modules.split("+")]
        wanted = torch.cat(parts)
        assert (weight.dtype, weight.shape) == ("bfloat16", tuple(wanted.shape))
        assert stored(folder, weight) == wanted.view(torch.int16).numpy().tobytes()
    found = [value.name for value in ir.load(folder / "decoder.onnx").graph.inputs]
    assert found == [port.name for port in entry.file_signature().inputs]


def test_a_decoder_that_the_kernels_cannot_run_keeps_its_weights_inside(exports: Exports, tmp_path: Path) -> None:
    checkpoint, folder = Checkpoint.open(exports.checkpoint()), tmp_path / "bundle"
    entry = export_bundle(checkpoint, folder, ExportPlan("cuda", "bf16"), Silence()).graphs["decoder"]
    assert (entry.step_form, entry.weights) == (None, ())
    weight = ir.load(folder / "decoder.onnx").graph.initializers[OUTPUT].const_value
    assert weight is not None
    wanted = checkpoint.read(OUTPUT).numpy().T
    np.testing.assert_allclose(weight.numpy().astype(np.float32), wanted, rtol=2**-8)


def forms_of(exports: Exports, whole: tuple[str, ...] = ()) -> Forms:
    """A decoder in fp8 but for the matrices that are left whole."""
    checkpoint = Checkpoint.open(exports.checkpoint(WIDE))
    recipe = uniform(checkpoint, "fp8")
    for name in whole:
        del recipe.graphs["decoder"].linears[name]
    model = ir.load(exports.portable("decoder", WIDE, "bfloat16"))
    quantize(model, recipe, "decoder", TARGETS["cuda"].numbers)
    return lower_forms(model, "decoder", TARGETS["cuda"], checkpoint.text)


def test_the_long_form_s_weights_are_the_first_layer_s_inputs(exports: Exports) -> None:
    forms = forms_of(exports)
    assert forms.steps is not None and forms.long is not None
    inputs = {str(value.name) for value in forms.long.graph.inputs} & forms.shared.keys()
    first = forms.steps.layers[0]
    assert {first.qkv.weight, first.bias, first.norm, first.mlp_norm, first.output.weight} <= inputs
    assert inputs <= set(first.names())
    assert not inputs & {first.gate.weight, first.up.weight, first.down.weight}
    own = [value for value in forms.long.graph.initializers.values() if value.shape and len(value.shape) > 1]
    assert [str(value.name) for value in own] == ["model.language_model.inv_freq"]


def test_layers_whose_attention_differs_have_no_long_form(exports: Exports) -> None:
    """One graph could not run them all."""
    forms = forms_of(exports, (OUTPUT,))
    assert forms.steps is not None and forms.long is None


def test_attention_that_is_whole_in_every_layer_has_one(exports: Exports) -> None:
    forms = forms_of(exports, tuple(OUTPUT.replace(".1.", f".{layer}.") for layer in range(3)))
    assert forms.long is not None and forms.mlp_steps
