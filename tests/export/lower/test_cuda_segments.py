"""The vision encoder in segments: with attention as the kernel's contract has it they give the portable numbers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exports import Exports, Silence
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.lower import cuda
from reflectrt.export.lower.cuda_scratch import row_bytes
from reflectrt.export.lower.cuda_segments import Segments, cut_at_attention, segments
from reflectrt.export.quantize.apply import quantize
from reflectrt.export.quantize.plain import default_recipe
from reflectrt.export.targets import TARGETS
from reflectrt.runtime import manifest as manifests
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import Signature, vision_segments
from reflectrt.runtime.engines.cuda_runs import ROW_BYTES
from reflectrt.runtime.manifest import GraphEntry
from reflectrt.runtime.vision import vision_layout

Arrays = dict[str, np.ndarray]
NAMES = ["small", "linear-head"]
"""Three blocks of which the second sees whole grids, and five of which the second and the fifth do."""


def cut(exports: Exports, name: str = "small", dtype: str = "float32") -> Segments:
    return segments(ir.load(exports.portable("vision", name, dtype)))


def session(model: ir.Model | Path, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    if isinstance(model, ir.Model):
        ir.external_data.load_to_model(model)
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(found: ort.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Arrays:
    names = [output.name for output in found.get_outputs()]
    return dict(zip(names, found.run(names, dict(inputs)), strict=True))


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Pairs (i, i + head_dim / 2) of x [rows, heads, head_dim] by the angles of row mod patches."""
    places = np.arange(len(x)) % len(cos)
    cos, sin = cos[places, None], sin[places, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def attend(qkv: np.ndarray, heads: int, cos: np.ndarray, sin: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """What the attention kernel gives: qkv [rows, 3 * heads * head_dim], runs from ends[s] to ends[s + 1]."""
    query, key, value = qkv.reshape(len(qkv), 3, heads, -1).swapaxes(0, 1)
    query, key = rotated(query, cos, sin), rotated(key, cos, sin)
    out = np.empty_like(value)
    for start, end in pairwise(ends):
        scores = np.einsum("qhd,khd->hqk", query[start:end], key[start:end]) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[start:end] = np.einsum("hqk,khd->qhd", weights, value[start:end])
    return out.reshape(len(qkv), -1)


def encode(parts: Segments, inputs: Arrays) -> np.ndarray:
    """Embeddings by way of the segments."""
    block, state = session(parts.block), run(session(parts.start), inputs)
    grids, patches = inputs["patches"].shape[:2]
    whole = np.arange(grids + 1) * patches
    turn = state["cos"], state["sin"]

    def attended(index: int) -> np.ndarray:
        ends = whole if index in parts.full_attention_blocks else state["window_ends"]
        return attend(state["qkv"], parts.heads, *turn, ends)

    for index, names in enumerate(parts.blocks):
        weights = {port: parts.weights[name].numpy() for port, name in zip(parts.inputs, names, strict=True)}
        found = run(block, {"attended": attended(index), "residual": state["residual"], **weights})
        state |= {"residual": found["residual_out"], "qkv": found["qkv"]}
    last = {name: state[name] for name in ("residual", "window_ranks")}
    return run(session(parts.end), last | {"attended": attended(len(parts.blocks))})["embeddings"]


def grid_inputs(grids: int, height: int, width: int) -> Arrays:
    layout = vision_layout(height, width, merge=2, window=8)
    return {
        "patches": np.random.default_rng(1).integers(0, 256, (grids, height * width, 1176), dtype=np.uint8),
        "patch_positions": layout.positions,
        "windows": layout.windows,
        "window_slots": layout.slots,
    }


@pytest.mark.parametrize("name", NAMES)
def test_segments_and_attention_give_the_portable_graph_s_numbers(exports: Exports, name: str) -> None:
    portable, parts = session(exports.portable("vision", name)), cut(exports, name)
    for size in ((1, 8, 8), (2, 12, 24), (3, 4, 6), (2, 10, 18)):
        inputs = grid_inputs(*size)
        wanted = run(portable, inputs)["embeddings"]
        np.testing.assert_allclose(encode(parts, inputs), wanted, atol=5e-5)


def test_a_quantized_vision_encoder_is_refused(exports: Exports) -> None:
    recipe = default_recipe(Checkpoint.open(exports.checkpoint()), "int8-weights")
    assert recipe is not None
    model = ir.load(exports.portable("vision", dtype="bfloat16"))
    quantize(model, recipe, "vision", TARGETS["cuda"].numbers)
    with pytest.raises(ValueError, match="is quantized, which the CUDA target does not run"):
        cut_at_attention(model)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(("dtype", "other"), [("bfloat16", "FLOAT16"), ("float16", "BFLOAT16")])
def test_segments_are_fused_and_compute_in_the_activation_type(exports: Exports, dtype: str, other: str) -> None:
    parts = cut_at_attention(ir.load(exports.portable("vision", dtype=dtype)))
    assert parts is not None
    assert (parts.heads, parts.head_dim, parts.full_attention_blocks) == (4, 16, (1,))
    for part, products, norms in ((parts.start, 2, 0), (parts.block, 5, 2), (parts.end, 6, 2)):
        found = counts(part)
        assert (found["MatMul"], found["SkipSimplifiedLayerNormalization"]) == (products, norms)
        assert found["QuickGelu"] == (part is not parts.start)
        assert found["Mul"] == (2 if part is parts.start else 1)  # pixels and angles; gate and up
        assert not {"Attention", "RotaryEmbedding", "Split", "Sigmoid", "Transpose", "Softmax"} & found.keys()
        values = [value for node in part.graph for value in (*node.inputs, *node.outputs) if value is not None]
        casts = [node.attributes["to"].as_int() for node in part.graph if node.op_type == "Cast"]
        kinds = {value.dtype for value in values} | {ir.DataType(to) for to in casts}
        assert ir.DataType[other] not in kinds
        assert int(part.metadata_props[ROW_BYTES]) == row_bytes(part.graph) > 0
    assert counts(parts.block)["Add"] == 0  # biases are in the products and norms


def test_weights_of_blocks_are_named_and_padded_as_in_the_whole_graph(exports: Exports) -> None:
    """But for the query, key and value matrix, which is whole here."""
    path = exports.portable("vision", dtype="bfloat16")
    parts, whole = cut_at_attention(ir.load(path)), cuda.lower(ir.load(path)).graph.initializers
    assert parts is not None
    assert parts.inputs[:2] == ("attn.proj.weight", "norm2.weight") and parts.inputs[-1] == "next.attn.qkv.affine"
    assert [str(value.name) for value in parts.block.graph.inputs] == ["attended", "residual", *parts.inputs]
    assert not parts.block.graph.initializers
    prefix = "model.visual.blocks."
    for index, names in enumerate(parts.blocks):
        places = [f"{prefix}{index + 1}." if port.startswith("next.") else f"{prefix}{index}." for port in parts.inputs]
        ports = (port.removeprefix("next.") for port in parts.inputs)
        assert names == tuple(place + port for place, port in zip(places, ports, strict=True))
    for name, tensor in parts.weights.items():
        if name.endswith("attn.qkv.affine"):
            assert tensor.shape.numpy() == (64 + 8, 3 * 64)
        else:
            there = whole[name].const_value
            assert there is not None and there.tobytes() == tensor.tobytes()


def with_heads(model: ir.Model, head_dim: int) -> ir.Model:
    """The graph as if its heads were of another size."""
    for node in model.graph:
        if node.op_type == "Attention" and node.inputs[0] is not None:
            node.inputs[0].shape = ir.Shape(["grids", 4, "patches", head_dim])
    return model


@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 16), ("bfloat16", 40), ("bfloat16", 144)])
def test_what_the_attention_kernel_does_not_take_stays_whole(exports: Exports, dtype: str, head_dim: int) -> None:
    model = ir.load(exports.portable("vision", dtype=dtype))
    assert cut_at_attention(with_heads(model, head_dim)) is None


def read(folder: Path, entry: GraphEntry) -> dict[str, bytes]:
    """The bytes of an entry's weights."""
    found = {}
    for weight in entry.weights:
        with (folder / weight.file).open("rb") as file:
            file.seek(weight.offset)
            found[weight.name] = file.read(weight.nbytes)
    return found


def test_a_bundle_has_segments_beside_the_vision_graph_and_shared_weights_once(
    exports: Exports, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    checkpoint = Checkpoint.open(exports.checkpoint())
    manifest = export_bundle(checkpoint, folder, ExportPlan("cuda", "fp16"), Silence())
    assert open_bundle(folder).manifest == manifest == manifests.parse(manifests.dump(manifest))
    entry = manifest.graphs["vision"]
    form = entry.block_form
    assert form is not None
    assert {form.start, form.block, form.end, "vision_blocks.data", "vision.onnx.data"} < set(entry.files())
    assert entry.file_signature() == entry.signature() == Signature(entry.inputs, entry.outputs)
    parts = cut_at_attention(ir.load(exports.portable("vision", dtype="float16")))
    assert parts is not None and (parts.inputs, parts.blocks) == (form.inputs, form.blocks)
    assert read(folder, entry) == {name: tensor.tobytes() for name, tensor in parts.weights.items()}
    thirds = [weight.name for weight in entry.weights if weight.file == "vision_blocks.data" and len(weight.shape) > 1]
    assert thirds == [f"model.visual.blocks.{index}.attn.qkv.affine" for index in (1, 2)]
    signatures = vision_segments(entry.signature(), form.heads, form.head_dim)
    for name, file in zip(signatures, (form.start, form.block, form.end), strict=True):
        found = session(folder / file)
        wanted = signatures[name]
        weights = form.inputs if file == form.block else ()
        assert [port.name for port in found.get_inputs()] == [*(port.name for port in wanted.inputs), *weights]
        assert [port.name for port in found.get_outputs()] == [port.name for port in wanted.outputs]
        types = {"float": "float16", "float32": "float", "int32": "int32", "int64": "int64", "uint8": "uint8"}
        ports = [*wanted.inputs, *wanted.outputs]
        shown = [*found.get_inputs()[: len(wanted.inputs)], *found.get_outputs()]
        assert [port.type for port in shown] == [f"tensor({types[port.dtype]})" for port in ports]
        assert [tuple(port.shape) for port in shown] == [port.axes for port in ports]


def test_manifests_without_segments_are_read(exports: Exports) -> None:
    manifest = manifests.parse((exports.bundle() / manifests.FILE_NAME).read_text())
    assert all(entry.block_form is None for entry in manifest.graphs.values())
    old = replace(manifest, version=(1, 4))
    text = manifests.dump(old).replace('"block_form": null', '"block_form_of_others": null')
    assert manifests.parse(text) == old
