import numpy as np
import onnx_ir as ir
import pytest
from exports import Exports
from onnx_ir import external_data
from recipes import uniform
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower.quantized_linears import find_quantized_linears, pack_blocks, pack_nibbles
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.linears import find_linears


@pytest.fixture
def decoder(exports: Exports) -> ir.Model:
    return external_data.load_to_model(ir.load(exports.portable("decoder")))


def test_every_quantized_linear_is_found_with_its_bias_and_the_float_it_reads(
    exports: Exports, decoder: ir.Model
) -> None:
    plain = {linear.name: linear.x for linear in find_linears(decoder).values()}
    quantize(decoder, uniform(Checkpoint.open(exports.checkpoint()), "int8", scale=0.25), "decoder")
    found = {linear.name: linear for linear in find_quantized_linears(decoder)}
    assert {name: linear.x for name, linear in found.items()} == plain
    for name, linear in found.items():
        assert linear.input_scale is not None and linear.input_scale.const_value is not None
        assert linear.input_scale.const_value.numpy() == 0.25
        assert (linear.inputs, linear.outputs) == tuple(linear.weight.shape or ())
        biased = name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj")
        assert (linear.bias_value.name if linear.bias_value else None) == (f"{name}.bias" if biased else None)


def test_a_float_graph_has_none(decoder: ir.Model) -> None:
    assert not list(find_quantized_linears(decoder))


def test_the_first_of_two_nibbles_is_the_low_one() -> None:
    np.testing.assert_array_equal(pack_nibbles(np.array([[1, 2, 15, 0]], np.uint8)), [[0x21, 0x0F]])


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_blocks_are_offset_and_filled_up_with_zero(bits: int) -> None:
    weight = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
    packed = pack_blocks(weight, bits, block=4)
    assert packed.shape == (2, 2, bits // 2)
    numbers = np.stack((packed & 15, packed >> 4), axis=-1) if bits == 4 else packed
    np.testing.assert_array_equal(
        numbers.reshape(2, 8).astype(int) - (1 << (bits - 1)), np.pad(weight, ((0, 0), (0, 2)))
    )
