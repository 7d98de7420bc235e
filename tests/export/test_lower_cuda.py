from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower import cuda
from reflectrt.export.lower.cuda_nodes import Nodes
from reflectrt.export.lower.cuda_scratch import row_bytes
from reflectrt.runtime.engines.cuda_runs import ROW_BYTES
from reflectrt.runtime.vision import vision_layout

Arrays = dict[str, np.ndarray]


def lowered(exports: Exports, graph: str, name: str = "small", dtype: str = "float32") -> ir.Model:
    """A graph of a random checkpoint as the CUDA lowering leaves it, with its weights."""
    model = ir.load(exports.portable(graph, name, dtype))
    return cuda.lower(model)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model | Path, inputs: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if isinstance(model, ir.Model):
        ir.external_data.load_to_model(model)
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def with_packed_attention(model: ir.Model) -> ir.Model:
    """The model with PackedMultiHeadAttention, which the CPU lacks, as what it means in standard operators."""
    for node in list(model.graph):
        if node.op_type == "PackedMultiHeadAttention":
            op, heads = Nodes(), node.attributes["num_heads"].as_int()
            query, key, value, _, _, ends = node.inputs

            def constant(values: int | list[int], op: Nodes = op) -> ir.Value:
                return op.Constant(value=ir.tensor(values, dtype=ir.DataType.INT64))

            tokens = op.Range(constant(0), op.Squeeze(op.Shape(query, start=0, end=1)), constant(1))
            passed = op.GreaterOrEqual(
                op.Unsqueeze(tokens, constant([1])), op.Cast(op.Unsqueeze(ends, constant([0])), to=ir.DataType.INT64)
            )
            run_of = op.ReduceSum(op.Cast(passed, to=ir.DataType.INT64), constant([1]), keepdims=0)
            together = op.Equal(op.Unsqueeze(run_of, constant([1])), op.Unsqueeze(run_of, constant([0])))
            batched = [op.Unsqueeze(x, constant([0])) for x in (query, key, value)]
            out = op.Squeeze(op.Attention(*batched, together, q_num_heads=heads, kv_num_heads=heads), constant([0]))
            model.graph.insert_before(node, list(op.nodes))
            node.outputs[0].replace_all_uses_with(out)
            model.graph.remove(node, safe=True)
    return model


@pytest.mark.parametrize(("name", "layers"), [("small", 2), ("grouped-7", 1)])
def test_every_layer_of_the_decoder_is_fused(exports: Exports, name: str, layers: int) -> None:
    found = counts(lowered(exports, "decoder", name, "bfloat16"))
    assert found["GroupQueryAttention"] == found["QuickGelu"] == layers
    assert found["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert found["MatMul"] == 5 * layers  # q, k and v are one
    assert found["Attention"] == found["TensorScatter"] == found["Range"] == found["Sigmoid"] == 0


def test_nothing_in_the_decoder_goes_from_the_host_to_the_device(exports: Exports) -> None:
    """A CUDA graph allows no copy: what comes from a shape, which is on the host, feeds shapes and lengths only."""
    model = lowered(exports, "decoder", dtype="bfloat16")
    on_host = {output for node in model.graph if node.op_type == "Shape" for output in node.outputs}
    for node in model.graph:
        if on_host.intersection(node.inputs):
            assert node.op_type in ("GroupQueryAttention", "Reshape", "Cast", "Squeeze"), node
            if node.op_type == "GroupQueryAttention":
                assert not on_host.intersection(node.inputs[:6])
            elif node.inputs[0] in on_host:
                on_host.update(node.outputs)


def test_the_decoder_gives_the_portable_graph_s_numbers(exports: Exports) -> None:
    random = np.random.default_rng(0)
    portable = exports.portable("decoder", "small")
    model = lowered(exports, "decoder", "small")
    for past, tokens in ((0, 1), (0, 7), (5, 1), (3, 60), (127, 1), (90, 38), (0, 128)):
        inputs: Arrays = {}
        for value in ir.load(portable).graph.inputs:
            free = {"tokens": tokens, "capacity": 128}
            shape = [axis if isinstance(axis, int) else free[str(axis)] for axis in value.shape]  # type: ignore[union-attr]
            inputs[str(value.name)] = random.normal(size=shape).astype(np.float32)
        inputs["positions"] = np.sort(random.integers(0, 300, (3, tokens)), axis=1)
        inputs["past_length"] = np.array([past])
        wanted, found = run(portable, inputs), run(model, inputs)
        np.testing.assert_allclose(found.pop("hidden_post_norm"), wanted.pop("hidden_post_norm"), atol=2e-5)
        for output, cache in found.items():
            np.testing.assert_allclose(cache[:, :, : past + tokens], wanted[output][:, :, : past + tokens], atol=1e-5)


def test_windows_become_packed_attention_and_nothing_is_padded(exports: Exports) -> None:
    found = counts(lowered(exports, "vision", dtype="bfloat16"))  # three blocks, the second with full attention
    assert found["PackedMultiHeadAttention"] == 2
    assert found["MultiHeadAttention"] == 1
    assert found["SkipSimplifiedLayerNormalization"] == 2 * 3
    assert found["QuickGelu"] == 3
    assert found["Attention"] == found["Clip"] == found["Transpose"] == 0


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 24), (4, 6), (10, 18)])
def test_vision_gives_the_portable_graph_s_numbers(exports: Exports, height: int, width: int) -> None:
    layout = vision_layout(height, width, merge=2, window=8)
    inputs: Arrays = {
        "patches": np.random.default_rng(1).integers(0, 256, (2, height * width, 1176), dtype=np.uint8),
        "patch_positions": layout.positions,
        "windows": layout.windows,
        "window_slots": layout.slots,
    }
    model = lowered(exports, "vision")
    wanted = run(exports.portable("vision"), inputs)["embeddings"]
    found = run(with_packed_attention(model), inputs)["embeddings"]
    np.testing.assert_allclose(found, wanted, atol=5e-5)


def test_packed_attention_gets_float16_from_products_in_float16(exports: Exports) -> None:
    """The operator has no bfloat16 kernel: one cast in front of its three products, one behind it."""
    model = lowered(exports, "vision", dtype="bfloat16")
    for node in model.graph:
        if node.op_type == "PackedMultiHeadAttention":
            (reader,) = (user for user, _ in node.outputs[0].uses())
            (cast,) = (user for user, _ in reader.outputs[0].uses())
            assert cast.attributes["to"].as_int() == ir.DataType.BFLOAT16
            products = [back_to(value, "MatMul") for value in node.inputs[:3]]
            assert {product.inputs[1].dtype for product in products} == {ir.DataType.FLOAT16}  # type: ignore[union-attr]
            assert len({product.inputs[0] for product in products}) == 1
    half = {name.removesuffix(".half") for name in model.graph.initializers if name.endswith(".half")}
    assert half
    assert not half.intersection(model.graph.initializers)  # each weight is there once
    in_float16 = lowered(exports, "vision", dtype="float16")
    assert counts(in_float16)["Cast"] < counts(model)["Cast"]


def back_to(value: ir.Value | None, operator: str) -> ir.Node:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == operator:
            return node
        value = node.inputs[0]
    raise AssertionError(f"no {operator}")


def test_biases_of_wide_products_are_inside_them(exports: Exports) -> None:
    model = lowered(exports, "vision", dtype="bfloat16")
    blocks = [node for node in model.graph if "blocks." in " ".join(str(value.name) for value in node.inputs if value)]
    assert {node.op_type for node in blocks} == {"MatMul", "RMSNormalization", "SkipSimplifiedLayerNormalization"}
    assert counts(model)["Split"] == 0
    weights = model.graph.initializers
    plain = ir.load(exports.portable("vision", dtype="bfloat16")).graph.initializers
    prefix = "model.visual.blocks.1.attn.qkv"
    weight, bias = (plain[f"{prefix}.{kind}"].const_value.numpy() for kind in ("weight", "bias"))  # type: ignore[union-attr]
    key = weights[f"{prefix}.1.affine"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(key[:64], weight[:, 64:128])
    np.testing.assert_array_equal(key[64], bias[64:128])
    assert not key[65:].any()
    assert len(key) == 64 + 8


def test_packed_weights_are_read_when_they_are_written(exports: Exports) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    model = ir.load(exports.portable("decoder"))
    prefix = "model.language_model.layers.0.self_attn."
    parts = [checkpoint.read(f"{prefix}{part}_proj.weight").t().float().numpy() for part in "qkv"]
    cuda.lower(model)
    packed = model.graph.initializers[f"{prefix}q_proj+k_proj+v_proj.weight"].const_value
    assert isinstance(packed, ir.LazyTensor)
    np.testing.assert_array_equal(packed.numpy(), np.concatenate(parts, axis=1))


def test_widths_that_tensor_cores_do_not_like_are_padded(exports: Exports) -> None:
    """The random checkpoint's vision MLP is 100 wide; the numbers are those of the test above."""
    weights = lowered(exports, "vision").graph.initializers
    prefix = "model.visual.blocks.1.mlp."
    sizes = {name.removeprefix(prefix): tuple(v.shape) for name, v in weights.items() if name.startswith(prefix)}  # type: ignore[arg-type]
    assert sizes["gate_proj.affine"] == sizes["up_proj.affine"] == (64 + 8, 104)
    assert sizes["down_proj.weight"] == (104, 64)
    padded = weights[f"{prefix}down_proj.weight"].const_value
    assert padded is not None
    assert not padded.numpy()[100:].any()
    assert padded.numpy()[:100].any()


def test_a_row_s_bytes_are_the_most_that_are_alive_at_once() -> None:
    tokens = ir.Shape([1, "tokens", 8])
    x, first, second, out = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=tokens) for name in "xfso"
    )
    wide = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, "tokens", 16]))
    nodes = [
        ir.node("Neg", [x], outputs=[first]),
        ir.node("Concat", [first, first], {"axis": -1}, outputs=[wide]),
        ir.node("Slice", [wide], outputs=[second]),
        ir.node("Add", [first, second], outputs=[out]),
    ]
    graph = ir.Graph([x], [out], nodes=nodes, opset_imports={"": 24})
    assert row_bytes(graph) == 4 * (
        8 + 16 + 8
    )  # while Slice runs: first, wide, second; inputs and outputs are not ours


def test_the_file_says_what_a_row_takes(exports: Exports) -> None:
    model = lowered(exports, "decoder")
    ir.external_data.load_to_model(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    said = int(session.get_modelmeta().custom_metadata_map[ROW_BYTES])
    assert said == row_bytes(model.graph)
    hidden, inner = 48, 96
    assert said >= 4 * (hidden + 3 * inner)  # the residual, and an MLP's gate, up and product
