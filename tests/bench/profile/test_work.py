"""Operations and bytes of graphs small enough to count by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from reflectrt.bench.profile.graph import from_model, read
from reflectrt.bench.profile.shapes import walk
from reflectrt.bench.profile.work import Work, count

F32 = TensorProto.FLOAT


def graph(nodes, inputs, outputs, bound=(), **weights):
    ports = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    ends = [helper.make_tensor_value_info(name, F32, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return from_model(helper.make_model(helper.make_graph(nodes, "g", ports, ends, stored)), bound)


def counted(found, shapes, past=0):
    work, unknown = count(found, shapes, past)
    assert not unknown
    return work


def test_a_matrix_product_with_a_bias():
    # [5, 3] x [3, 4]: 5 * 4 results of 3 multiplications and 3 additions, and 20 additions.
    found = graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        {"x": (F32, ["T", 3])},
        ["y"],
        w=np.zeros((3, 4), np.float32),
        b=np.zeros(4, np.float32),
    )
    assert counted(found, {"x": (5, 3)}) == Work(
        float_ops=2 * 5 * 3 * 4 + 20,
        weight_bytes=4 * (12 + 4),
        activation_bytes=4 * (15 + 20),
        between_bytes=2 * 4 * (20 + 20),
    )


def test_a_weight_used_twice_moves_once():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("MatMul", ["p", "w"], ["y"])]
    found = graph(nodes, {"x": (F32, [2, 3])}, ["y"], w=np.zeros((3, 3), np.float32))
    assert counted(found, {"x": (2, 3)}).weight_bytes == 36


def test_gemm_with_a_transposed_weight():
    found = graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (F32, [2, 3])}, ["y"], w=np.zeros((7, 3), "f4")
    )
    work = counted(found, {"x": (2, 3)})
    assert (work.float_ops, work.activation_bytes) == (2 * 2 * 3 * 7, 4 * (6 + 14))


def test_a_table_moves_only_the_rows_looked_up():
    found = graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        {"ids": (TensorProto.INT64, [1, "T"])},
        ["y"],
        table=np.zeros((100, 8), np.float32),
    )
    assert counted(found, {"ids": (1, 3)}) == Work(
        weight_bytes=3 * 8 * 4, activation_bytes=3 * 8 + 3 * 8 * 4, between_bytes=2 * 3 * 8 * 4
    )


def test_causal_attention_counts_the_pairs_it_may_see_and_the_cache_rows_it_reads_and_writes():
    # 4 query heads of 8, 2 of keys and values; 3 tokens after 10: they see 11, 12 and 13 rows.
    names = ["q", "k", "v", "key_cache.0", "value_cache.0", "last", "total"]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "k_out", "v_out"], domain="com.microsoft", num_heads=4, kv_num_heads=2
    )
    cache = (1, 2, 64, 8)
    shapes = {"q": (1, 3, 32), "k": (1, 3, 16), "v": (1, 3, 16), "key_cache.0": cache, "value_cache.0": cache}
    inputs = {name: (F32, shape) for name, shape in shapes.items()}
    inputs |= {"last": (TensorProto.INT32, [1]), "total": (TensorProto.INT32, [1])}
    work = counted(graph([node], inputs, ["y"]), shapes | {"last": (1,), "total": (1,)}, past=10)
    assert work.float_ops == (11 + 12 + 13) * 4 * 8 * 4  # a product and a sum for the score, as many for the values
    assert work.cache_bytes == 2 * 2 * 8 * 4 * (13 + 3)  # keys and values, 2 heads of 8 floats: 13 read, 3 written
    assert work.activation_bytes == 4 * (96 + 48 + 48 + 96) + 8  # the cache is not among them


def test_full_attention_counts_all_pairs():
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    shapes = {"q": (2, 3, 5, 8), "k": (2, 3, 7, 8), "v": (2, 3, 7, 8)}
    work = counted(graph([node], {name: (F32, shape) for name, shape in shapes.items()}, ["y"]), shapes)
    assert work.float_ops == 4 * 2 * 3 * 5 * 7 * 8


@pytest.mark.parametrize(("op", "each"), [("RMSNormalization", 4), ("Sigmoid", 1), ("Transpose", 0), ("Cos", 1)])
def test_element_wise_operators(op, each):
    inputs = ["x", "w"] if op == "RMSNormalization" else ["x"]
    found = graph([helper.make_node(op, inputs, ["y"])], {"x": (F32, [2, 6])}, ["y"], w=np.ones(6, np.float32))
    assert counted(found, {"x": (2, 6)}).float_ops == each * 12


def test_products_of_dequantized_tensors_are_integer_work_over_one_byte_weights():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    scale = {"s": np.float32(1), "z": np.uint8(0)}
    weights = {name: np.asarray(value) for name, value in scale.items()} | {"w": np.zeros((3, 4), np.int8)}
    work = counted(graph(nodes, {"x": (F32, [5, 3])}, ["y"], **weights), {"x": (5, 3)})
    assert (work.float_ops, work.integer_ops, work.weight_bytes) == (0, 2 * 5 * 3 * 4, 12 + 4 + 1)


def test_packed_four_bit_weights():
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=10, bits=4)
    packed = {"w": np.zeros((10, 2, 16), np.uint8), "s": np.zeros((10, 2), np.float32)}
    work = counted(graph([node], {"x": (F32, [1, 1, 64])}, ["y"], **packed), {"x": (1, 1, 64)})
    assert (work.float_ops, work.weight_bytes) == (2 * 64 * 10, 10 * 64 // 2 + 4 * 20)


def test_shapes_that_a_graph_computes_are_followed():
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "two", "rest"], ["s"], axis=0),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    ends = {"two": np.array([2], np.int64), "rest": np.array([-1], np.int64)}
    found = walk(graph(nodes, {"x": (F32, ["T", 6])}, ["y"], **ends), {"x": (5, 6)})
    assert found.tensors["y"].shape == (5, 2, 3)


def test_an_operator_without_a_rule_is_named():
    work, unknown = count(graph([helper.make_node("Det", ["x"], ["y"])], {"x": (F32, [3, 3])}, ["y"]), {"x": (3, 3)})
    assert (work.float_ops, unknown) == (0, {"Det"})


def test_a_bundles_decoder_by_the_models_sizes(exports):
    # "small": 2 layers, width 48, 3 heads of 16, one of keys and values; MLP as the checkpoint's config says.
    import json

    mlp = json.loads((exports.checkpoint() / "config.json").read_text())
    mlp = (mlp.get("text_config") or mlp)["intermediate_size"]
    file = exports.bundle() / "decoder.onnx"
    tokens, past = 7, 20
    shapes = {"embeddings": (1, tokens, 48), "positions": (3, tokens), "past_length": (1,)}
    shapes |= {f"{kind}_cache.{layer}": (1, 1, 256, 16) for layer in range(2) for kind in ("key", "value")}
    work = counted(read(file), shapes, past)
    products = 2 * tokens * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * mlp)
    attention = 4 * 48 * (tokens * past + tokens * (tokens + 1) // 2)
    small = work.float_ops - 2 * (products + attention)
    assert 0 < small < 0.05 * work.float_ops  # norms, rotary embedding, biases, activations
    assert work.cache_bytes == 2 * 2 * 16 * 4 * (past + 2 * tokens)
    assert work.weight_bytes == pytest.approx((exports.bundle() / "decoder.onnx.data").stat().st_size, rel=0.02)


TARGETS = {
    "cpu": ("small", "float32", ["fp32", "int8", "int8-weights", "fp8", "int4"]),
    "cuda": ("wide-head", "float16", ["fp16", "int8-weights", "fp8", "int4"]),
    "tensorrt": ("grouped-3-tied", "float32", ["fp16", "int8", "fp8", "int4"]),
}
"""Checkpoint, activations and precisions."""


@pytest.mark.parametrize("name", ["vision", "embed", "decoder", "head"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_operator_of_every_bundle_has_a_rule(exports, name, target):
    import onnx_ir as ir
    from recipes import uniform
    from reflectrt.bench.profile.shape_rules import RULES
    from reflectrt.export import targets
    from reflectrt.export.checkpoint import Checkpoint
    from reflectrt.export.forms import lower_forms
    from reflectrt.export.quantize.apply import quantize
    from reflectrt.export.quantize.plain import default_recipe

    source, dtype, precisions = TARGETS[target]
    checkpoint = Checkpoint.open(exports.checkpoint(source))
    for precision in precisions:
        model = ir.load(exports.portable(name, source, dtype))
        static = precision in ("int8", "fp8")
        recipe = uniform(checkpoint, precision) if static else default_recipe(checkpoint, precision)
        made = targets.TARGETS[target]
        if recipe:
            quantize(model, made.adapt(recipe), name)
        forms = lower_forms(model, name, made, checkpoint.text)
        for form in (forms.short, forms.long):
            assert form is None or {node.op_type for node in form.graph} - set(RULES) == set(), precision


def test_a_quantized_table_moves_only_the_rows_looked_up():
    node = helper.make_node(
        "GatherBlockQuantized", ["table", "ids", "scales"], ["y"], domain="com.microsoft", bits=4, block_size=32
    )
    stored = {"table": np.zeros((100, 32), np.uint8), "scales": np.zeros((100, 2), np.float32)}
    work = counted(graph([node], {"ids": (TensorProto.INT64, [1, "T"])}, ["y"], **stored), {"ids": (1, 3)})
    assert work == Work(weight_bytes=3 * (32 + 8), activation_bytes=3 * 8 + 3 * 64 * 4, between_bytes=2 * 3 * 64 * 4)


FP8 = TensorProto.FLOAT8E4M3FN


def test_fp8_products_read_weights_that_are_inputs():
    # 5 rows of width 32 by a weight [16, 32].
    whole = helper.make_node("MatMulBlockQuantizedFp8Weight", ["x", "w", "s"], ["y"], domain="com.microsoft")
    scale = np.ones((16, 1), np.float32)
    inputs = {"x": (F32, [5, 32]), "w": (FP8, [16, 32])}
    work = counted(graph([whole], inputs, ["y"], ["w"], s=scale), {"x": (5, 32)})
    assert (work.float_ops, work.weight_bytes) == (2 * 5 * 16 * 32, 16 * 32 + 16 * 4)
    assert work.activation_bytes == 5 * (32 + 16) * 4


def test_a_product_by_rows_reads_a_weight_that_is_an_input():
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1)
    found = graph([node], {"x": (F32, [1, "T", 32]), "w": (F32, [16, 32])}, ["y"], ["w"])
    work = counted(found, {"x": (1, 5, 32)})
    assert (work.float_ops, work.weight_bytes) == (2 * 5 * 16 * 32, 4 * 16 * 32)
    assert work.activation_bytes == 5 * (32 + 16) * 4


def test_packed_attention_stays_in_its_windows():
    # 10 tokens of width 8 in windows of 4 places.
    names = ["q", "k", "v", "", "offsets", "ends"]
    node = helper.make_node("PackedMultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=2)
    shapes = {"q": (10, 8), "k": (10, 8), "v": (10, 8), "offsets": (3, 4), "ends": (4,)}
    work = counted(graph([node], {name: (F32, shape) for name, shape in shapes.items()}, ["y"]), shapes)
    assert work.float_ops == 4 * 8 * 10 * 4


def test_a_cache_of_fixed_rows_is_read_whole():
    scatter = [
        helper.make_node("TensorScatter", [f"{kind}_cache.0", "new", "past"], [f"{kind}_cache_out.0"], axis=2)
        for kind in ("key", "value")
    ]
    attend = helper.make_node("Attention", ["q", "key_cache_out.0", "value_cache_out.0"], ["y"])
    cache = (1, 2, 64, 8)
    shapes = {"q": (1, 2, 3, 8), "new": (1, 2, 3, 8), "key_cache.0": cache, "value_cache.0": cache, "past": (1,)}
    inputs = {name: (F32, shape) for name, shape in shapes.items()}
    work = counted(graph([*scatter, attend], inputs, ["y"]), shapes, past=10)
    assert work.cache_bytes == 2 * 4 * 2 * 8 * (64 + 3)
