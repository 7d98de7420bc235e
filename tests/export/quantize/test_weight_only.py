from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from exports import Exports, Silence
from onnx_ir import external_data
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.quantize.weight_only import RoundedWeight
from reflectrt.export.recipe import Recipe
from reflectrt.runtime.errors import NumericError

UP = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def decoder(exports: Exports) -> ir.Model:
    return external_data.load_to_model(ir.load(exports.portable("decoder")))


def recipe(exports: Exports, precision: str) -> Recipe:
    found = default_recipe(Checkpoint.open(exports.checkpoint()), precision)
    assert found is not None
    return found


def dequantized(model: ir.Model, name: str) -> np.ndarray:
    """A weight [in, out] as its DequantizeLinear gives it, by the standard's own words."""
    stored = model.graph.initializers[f"{name}_quantized"]
    (node,) = stored.consumers()
    scale = model.graph.initializers[f"{name}_scale"].const_value
    assert stored.const_value is not None and scale is not None and node.op_type == "DequantizeLinear"
    numbers, steps = stored.const_value.numpy().astype(np.float32), scale.numpy()
    block = node.attributes.get_int("block_size", 0)
    if not block:
        return numbers * np.expand_dims(steps, 1 - node.attributes["axis"].as_int())
    axis = node.attributes["axis"].as_int()
    return numbers * np.take(steps, np.arange(numbers.shape[axis]) // block, axis=axis)


@pytest.mark.parametrize(("precision", "dtype", "limit"), [("int8-weights", "INT8", 0.012), ("int4", "INT4", 0.10)])
def test_every_weight_comes_back_with_a_small_error(
    exports: Exports, decoder: ir.Model, precision: str, dtype: str, limit: float
) -> None:
    chosen = recipe(exports, precision)
    floats = {n: decoder.graph.initializers[n].const_value.numpy() for n in chosen.graph("decoder").linears}  # type: ignore[union-attr]
    quantize(decoder, chosen, "decoder")
    for name, weight in floats.items():
        assert decoder.graph.initializers[f"{name}_quantized"].dtype == ir.DataType[dtype]
        assert name not in decoder.graph.initializers
        difference = dequantized(decoder, name) - weight
        assert np.linalg.norm(difference) < limit * np.linalg.norm(weight)


def test_weights_are_read_while_they_are_written_and_not_before(exports: Exports, decoder: ir.Model) -> None:
    value = decoder.graph.initializers[UP]
    reads = 0

    def load() -> ir.TensorProtocol:
        nonlocal reads
        reads += 1
        return before

    before = value.const_value
    assert before is not None
    value.const_value = ir.LazyTensor(load, dtype=before.dtype, shape=ir.Shape(before.shape.numpy()), name=UP)
    quantize(decoder, recipe(exports, "int4"), "decoder")
    assert reads == 0
    dequantized(decoder, UP)
    assert reads > 0


def test_a_weight_that_is_not_finite_stops_the_export(exports: Exports, decoder: ir.Model) -> None:
    value = decoder.graph.initializers[UP]
    numbers = value.const_value.numpy().copy()  # type: ignore[union-attr]
    numbers[3, 5] = np.nan
    value.const_value = ir.tensor(numbers, name=UP)
    quantize(decoder, recipe(exports, "int4"), "decoder")
    with pytest.raises(NumericError, match=r"up_proj.weight has NaN"):
        dequantized(decoder, UP)


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_a_tied_head_and_the_token_table_stay_one_copy(exports: Exports, precision: str, tmp_path: Path) -> None:
    source = Checkpoint.open(exports.checkpoint("grouped-3-tied"))
    export_bundle(source, tmp_path / "bundle", ExportPlan(precision=precision), Silence())
    assert not (tmp_path / "bundle" / "head.onnx.data").exists()
    head, embed = (ir.load(tmp_path / "bundle" / f"{name}.onnx").graph for name in ("head", "embed"))
    (head_weight,) = (value for name, value in head.initializers.items() if name.endswith("_quantized_packed"))
    (table,) = (value for name, value in embed.initializers.items() if name.endswith("_quantized_packed"))
    for one, other in ((head_weight.const_value, table.const_value),):
        assert isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor)
        assert (one.offset, one.length) == (other.offset, other.length)


def test_weights_alone_in_8_bits_use_the_whole_range(exports: Exports, decoder: ir.Model) -> None:
    weight = decoder.graph.initializers[UP].const_value.numpy()  # type: ignore[union-attr]
    quantize(decoder, recipe(exports, "int8-weights"), "decoder")
    scale = decoder.graph.initializers[f"{UP}_scale"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=0) / 127, rtol=1e-6)


def test_numbers_are_multiples_of_the_scale_that_is_stored() -> None:
    """bfloat16 shortens a scale by up to 0.2 %: 127 steps of it would be a quarter of a step off."""
    weight = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    value = ir.Value(name="a.weight", shape=ir.Shape(weight.shape), const_value=ir.tensor(weight, name="a.weight"))
    rounded = RoundedWeight(value, 0, 8, 0, np.dtype(ml_dtypes.bfloat16))
    steps = rounded.stored_scales().astype(np.float32)
    inside = np.abs(weight) < 127 * steps
    assert inside.mean() > 0.9
    assert (np.abs(rounded.numbers() * steps - weight) <= 0.5001 * steps)[inside].all()
