"""Which decoders the step kernels run, and that their form names every weight in the layout that they read."""

from dataclasses import replace
from typing import Literal

import onnx_ir as ir
import pytest
from exports import Exports
from recipes import uniform
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.forms import DTYPES, Forms, lower_forms
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.recipe import KVCacheRecipe, LinearRecipe, Recipe
from reflectrt.export.steps import BLOCKS, FP8_WEIGHT, StoredMatrix, step_weights
from reflectrt.export.targets import TARGETS
from reflectrt.runtime.manifest import StepLayer, StepLinear

WIDE, LAYERS = "wide-head", 3
HIDDEN, HEAD_DIM, MLP = 256, 128, 512
"""Sizes of the checkpoint, which has two heads and one of keys and values."""
LAYER = "model.language_model.layers.1."
SIZES = {
    "qkv": (4 * HEAD_DIM, HIDDEN),
    "output": (HIDDEN, 2 * HEAD_DIM),
    "gate": (MLP, HIDDEN),
    "up": (MLP, HIDDEN),
    "down": (HIDDEN, MLP),
}


def recipe_of(exports: Exports, precision: str, name: str = WIDE) -> Recipe | None:
    checkpoint = Checkpoint.open(exports.checkpoint(name))
    return uniform(checkpoint, "fp8") if precision == "fp8" else default_recipe(checkpoint, precision)


def lowered(exports: Exports, recipe: Recipe | None, name: str = WIDE, dtype: str = "bfloat16") -> Forms:
    model = ir.load(exports.portable("decoder", name, dtype))
    if recipe is not None:
        quantize(model, recipe, "decoder", TARGETS["cuda"].numbers)
    text = Checkpoint.open(exports.checkpoint(name)).text
    return lower_forms(model, "decoder", TARGETS["cuda"], text)


def layers(forms: Forms) -> tuple[StepLayer, ...]:
    assert forms.steps is not None
    assert set(step_weights(forms.steps)) == forms.shared.keys()
    return forms.steps.layers


def check(forms: Forms, layer: StepLayer, dtype: str, bits: int, block: int = 0) -> None:
    """Shapes and types of a layer's weights; `block` inputs share a scale, 0: those of a row."""
    shapes = {name: tensor.shape.numpy() for name, tensor in forms.shared.items()}
    types = {name: DTYPES[tensor.dtype] for name, tensor in forms.shared.items()}
    assert (shapes[layer.norm], shapes[layer.mlp_norm], shapes[layer.bias]) == ((HIDDEN,), (HIDDEN,), (4 * HEAD_DIM,))
    for name, (outputs, inputs) in SIZES.items():
        linear: StepLinear = getattr(layer, name)
        assert types[linear.weight] == dtype
        rows, *columns = shapes[linear.weight]
        assert rows == outputs
        if linear.scales is None:
            assert columns == [inputs]
            continue
        size = block or inputs
        assert columns == ([inputs] if dtype == "float8e4m3fn" else [inputs // size, size * bits // 8])
        assert shapes[linear.scales] == (outputs, inputs // size)
        assert types[linear.scales] == ("float32" if dtype == "float8e4m3fn" else "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_float_decoder_s_steps_read_every_weight_of_it(exports: Exports, dtype: str) -> None:
    forms = lowered(exports, None, dtype=dtype)
    assert len(layers(forms)) == LAYERS
    for layer in layers(forms):
        check(forms, layer, dtype, 16)
        assert layer.cache_scales == ()
    inputs = [str(value.name) for value in forms.short.graph.inputs]
    assert inputs[-len(forms.shared) :] == list(forms.shared)
    left = [value for name, value in forms.short.graph.initializers.items() if name.endswith((".weight", ".bias"))]
    assert left == []


def test_the_form_has_the_model_s_constants(exports: Exports) -> None:
    text, form = Checkpoint.open(exports.checkpoint(WIDE)).text, lowered(exports, None).steps
    assert form is not None
    assert (form.heads, form.epsilon, form.rope_theta) == (2, text.rms_eps, text.rope_theta)
    assert form.mrope_section == text.mrope_section and sum(form.mrope_section) == HEAD_DIM // 2
    assert form.norm == "model.language_model.norm.weight"
    assert form.layers[1].qkv.weight == f"{LAYER}self_attn.q_proj+k_proj+v_proj.weight"


@pytest.mark.parametrize(
    ("precision", "dtype", "bits", "block"),
    [("int8-weights", "uint8", 8, 128), ("int4", "uint8", 4, 32), ("fp8", "float8e4m3fn", 8, 0)],
)
def test_a_quantized_decoder_s_scales_are_named_too(
    exports: Exports, precision: str, dtype: str, bits: int, block: int
) -> None:
    forms = lowered(exports, recipe_of(exports, precision))
    for layer in layers(forms):
        check(forms, layer, dtype, bits, block)


def test_layers_may_differ_in_format(exports: Exports) -> None:
    recipe = recipe_of(exports, "int4")
    assert recipe is not None
    linears = recipe.graphs["decoder"].linears
    linears |= dict.fromkeys((name for name in linears if name.startswith(LAYER)), LinearRecipe("int8-weights"))
    del linears["model.language_model.layers.2.mlp.down_proj.weight"]
    forms = lowered(exports, recipe)
    first, second, third = layers(forms)
    check(forms, first, "uint8", 4, 32)
    check(forms, second, "uint8", 8, 128)
    assert third.down.scales is None and third.up.scales is not None
    assert forms.shared[third.down.weight].shape.numpy() == SIZES["down"]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_of_a_quantized_cache_are_weights(exports: Exports, kind: Literal["int8", "fp8"]) -> None:
    recipe = recipe_of(exports, "int8-weights")
    assert recipe is not None
    rows = tuple(tuple(0.01 * (1 + layer + i / HEAD_DIM) for i in range(HEAD_DIM)) for layer in range(LAYERS))
    forms = lowered(exports, replace(recipe, kv_cache=KVCacheRecipe(kind, rows, rows[::-1])))
    for index, layer in enumerate(layers(forms)):
        for name, wanted in zip(layer.cache_scales, (rows[index], rows[::-1][index]), strict=True):
            scale = forms.shared[name]
            assert (scale.dtype, scale.shape.numpy()) == (ir.DataType.FLOAT, (1, 1, 1, HEAD_DIM))
            assert scale.numpy().ravel().tolist() == pytest.approx(wanted)


def is_as_before(forms: Forms) -> bool:
    """No weight is an input, and float matrices are [in, out]."""
    operators = {node.op_type for node in forms.short.graph}
    return forms.steps is None and not forms.shared and "FusedMatMul" not in operators


@pytest.mark.parametrize(
    ("name", "dtype", "precision"),
    [
        ("small", "bfloat16", "bf16"),  # heads of 16
        (WIDE, "float32", "fp32"),
        (WIDE, "float16", "int8-weights"),
        ("grouped-7", "bfloat16", "int8-weights"),  # 448 inputs, no multiple of 128
    ],
)
def test_what_the_kernels_cannot_run_is_lowered_as_before(
    exports: Exports, name: str, dtype: str, precision: str
) -> None:
    assert is_as_before(lowered(exports, recipe_of(exports, precision, name), name, dtype))


def test_heads_of_64_are_run(exports: Exports) -> None:
    assert lowered(exports, None, "grouped-7").steps is not None


@pytest.mark.parametrize("whole", ["mlp.gate_proj", "self_attn.k_proj"])
def test_matrices_that_one_kernel_reads_have_one_format(exports: Exports, whole: str) -> None:
    """Gate and up together, and q, k and v, which lie side by side."""
    recipe = recipe_of(exports, "int8-weights")
    assert recipe is not None
    del recipe.graphs["decoder"].linears[f"{LAYER}{whole}.weight"]
    assert is_as_before(lowered(exports, recipe))


@pytest.mark.parametrize(
    ("operator", "bits", "inputs", "block", "fits"),
    [
        ("MatMul", 16, 64, 0, True),
        ("MatMul", 16, 96, 0, False),
        (BLOCKS, 8, 128, 16, True),
        (BLOCKS, 8, 192, 16, False),
        (BLOCKS, 8, 128, 8, False),
        (BLOCKS, 4, 256, 32, True),
        (BLOCKS, 4, 256, 16, False),
        (BLOCKS, 4, 128, 32, False),
        (BLOCKS, 8, 384, 256, False),  # its last block is not whole
        (FP8_WEIGHT, 8, 384, 384, True),
        (FP8_WEIGHT, 8, 384, 64, True),
        (FP8_WEIGHT, 8, 384, 32, False),
    ],
)
def test_rows_and_blocks_are_whole_loads(operator: str, bits: int, inputs: int, block: int, fits: bool) -> None:
    names = StepLinear("w", "s" if block else None)
    assert StoredMatrix(names, operator, inputs, 16, bits, block).fits() is fits
    assert not StoredMatrix(names, operator, inputs, 24, bits, block).fits()
