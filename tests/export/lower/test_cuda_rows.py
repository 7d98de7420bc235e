from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from exports import Exports
from onnx_ir import external_data
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.inputs import GraphConfig
from reflectrt.export.lower import cuda
from reflectrt.export.lower.cuda_rows import read_rows
from reflectrt.export.weights import lift_weights

LAYERS = 2
ATTENTION = "model.language_model.layers.1.self_attn."
Arrays = dict[str, np.ndarray]


def lowered(exports: Exports) -> ir.Model:
    model = cuda.lower(external_data.load_to_model(ir.load(exports.portable("decoder"))))
    read_rows(model)
    return model


def run(model: ir.Model, inputs: Arrays) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["hidden_post_norm"], inputs)[0])


def decoder_inputs(model: ir.Model, past: int, tokens: int) -> Arrays:
    random, free = np.random.default_rng(0), {"tokens": tokens, "capacity": 64}
    found = {}
    for value in model.graph.inputs:
        shape = [axis if isinstance(axis, int) else free[str(axis)] for axis in value.shape]  # type: ignore[union-attr]
        found[str(value.name)] = random.normal(size=shape).astype(np.float32)
    found["positions"] = np.sort(random.integers(0, 90, (3, tokens)), axis=1)
    found["past_length"] = np.array([past])
    return found


def test_products_over_rows_give_the_portable_graph_s_numbers_with_weights_inside_and_as_inputs(
    exports: Exports,
) -> None:
    portable = external_data.load_to_model(ir.load(exports.portable("decoder")))
    model = lowered(exports)
    for past, tokens in ((0, 9), (5, 1)):
        inputs = decoder_inputs(portable, past, tokens)
        wanted = run(portable, inputs)
        np.testing.assert_allclose(run(model, inputs), wanted, atol=2e-5)
    names = [name for name in model.graph.initializers if name.endswith((".weight", ".bias"))]
    lifted = lift_weights(model, names)
    assert lifted.keys() == set(names) and not model.graph.initializers.keys() & lifted.keys()
    numbers = {name: tensor.numpy() for name, tensor in lifted.items()}
    np.testing.assert_allclose(run(model, inputs | numbers), wanted, atol=2e-5)


def test_every_float_matrix_is_stored_as_in_the_checkpoint(exports: Exports) -> None:
    checkpoint, model = Checkpoint.open(exports.checkpoint()), lowered(exports)
    counts = Counter(node.op_type for node in model.graph)
    assert (counts["FusedMatMul"], counts["MatMul"]) == (5 * LAYERS, 0)
    for node in model.graph:
        if node.op_type == "FusedMatMul":
            assert node.attributes["transB"].as_int() == 1
            weight = node.inputs[1]
            assert weight is not None and weight.const_value is not None and weight.shape is not None
            stem, _, kind = str(weight.name).rpartition(".")
            before, _, modules = stem.rpartition(".")
            rows = [checkpoint.read(f"{before}.{module}.{kind}").numpy() for module in modules.split("+")]
            np.testing.assert_array_equal(weight.const_value.numpy(), np.concatenate(rows))
            assert weight.shape.numpy() == weight.const_value.numpy().shape


def test_a_matrix_is_read_when_it_is_written_and_lies_as_it_was_read(exports: Exports) -> None:
    """Turned twice on its way it would be copied twice."""
    from reflectrt.export.bundle import _model_facts
    from reflectrt.export.graphs.decoder import Decoder
    from reflectrt.export.trace import trace
    from reflectrt.export.weights import bind_weights
    from reflectrt.runtime.contract import signatures
    from torch import float32

    checkpoint = Checkpoint.open(exports.checkpoint())
    signature = signatures(_model_facts(checkpoint, 1).sizes())["decoder"]
    model = trace(lambda: Decoder(checkpoint.text), GraphConfig(signature, float32), "decoder")
    bind_weights(model, checkpoint)
    output = model.graph.initializers[f"{ATTENTION}o_proj.weight"].const_value
    assert output is not None and output.numpy().flags.f_contiguous
    read_rows(cuda.lower(model))
    for name in ("o_proj.weight", "q_proj+k_proj+v_proj.weight"):
        assert isinstance(model.graph.initializers[ATTENTION + name].const_value, ir.LazyTensor)
