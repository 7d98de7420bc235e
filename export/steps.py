"""Which weights the steps of a lowered CUDA decoder read, for kernels of our own (`runtime/engines/cuda_steps.py`).

    a layer  norm, q k v side by side and their bias, output product; norm, gate, up and down; scales of its cache
    the end  norm

Weights are looked up by the checkpoint's names, which the lowering keeps, and their products' operators say how they
are stored. What the kernels cannot run is no error: the decoder is then ONNX Runtime's alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ..runtime.contract import cache_names
from ..runtime.engines.cuda_matrices import PART_LOADS, SEGMENT_LOADS, TILE_ROWS
from ..runtime.manifest import StepForm, StepLayer, StepLinear
from .facts import TextFacts

PREFIX = "model.language_model."
FINAL_NORM = f"{PREFIX}norm.weight"
QKV = "self_attn.q_proj+k_proj+v_proj"
MATRICES = (QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
VECTORS = ("input_layernorm.weight", f"{QKV}.bias", "post_attention_layernorm.weight")
BLOCKS, FP8_WEIGHT = "MatMulNBits", "MatMulBlockQuantizedFp8Weight"

HEAD_DIMS = (64, 128)
HIDDEN_MULTIPLE = 64
LOAD_BITS = 128
"""Of a thread's load (`runtime/kernels/step.cu`)."""
FP8, HALF, BFLOAT16 = ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [outputs, inputs] as an operator multiplies by it."""

    names: StepLinear
    operator: str
    inputs: int
    outputs: int
    bits: int
    block: int
    """Inputs that share a scale; 0 for floats."""

    @property
    def format(self) -> tuple[str, int, int]:
        """What matrices that one kernel multiplies by have in common."""
        return self.operator, self.bits, self.block

    def fits(self) -> bool:
        """Whether the kernels can read it: whole tiles of rows, whole loads in them, and in their scales' blocks."""
        load = LOAD_BITS // self.bits
        if self.inputs % (PART_LOADS * load) or self.outputs % TILE_ROWS:
            return False
        least = SEGMENT_LOADS * load if self.operator == FP8_WEIGHT else load
        whole = self.block in (0, self.inputs)
        return whole or (self.inputs % self.block == 0 and self.block % least == 0)


def step_form(model: ir.Model, text: TextFacts) -> StepForm | None:
    """What the kernels need of a lowered decoder, its float matrices [in, out] still; None where they cannot run it."""
    matrices = _matrices(model.graph)
    layers = [layer for index in range(text.layers) if (layer := _layer(model.graph, matrices, index)) is not None]
    if len(layers) < text.layers or not _fits(model.graph, matrices, text):
        return None
    return StepForm(text.heads, text.rms_eps, text.rope_theta, text.mrope_section, tuple(layers), FINAL_NORM)


def step_weights(form: StepForm) -> Iterator[str]:
    """Names of all weights that a step reads, in the order in which it does."""
    for layer in form.layers:
        yield from layer.names()
    yield form.norm


def _fits(graph: ir.Graph, matrices: dict[str, StoredMatrix], text: TextFacts) -> bool:
    """Whether sizes and number types are the kernels'."""
    types = {str(value.name): value.dtype for value in graph.inputs}
    quantized = any(matrix.block for matrix in matrices.values())
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    caches = {types[name] for name in cache_names(text.layers)}
    scaled = sum(f"{name}_scale" in graph.initializers for name in cache_names(text.layers))
    return (
        types["embeddings"] in ((BFLOAT16,) if quantized else (BFLOAT16, HALF))
        and text.head_dim in HEAD_DIMS
        and text.heads % text.kv_heads == 0
        and text.hidden % HIDDEN_MULTIPLE == 0
        and len(attentions) == text.layers
        and len(caches) == 1
        and scaled == (0 if caches == {types["embeddings"]} else 2 * text.layers)
        and FINAL_NORM in graph.initializers
    )


def _layer(graph: ir.Graph, matrices: dict[str, StoredMatrix], index: int) -> StepLayer | None:
    prefix = f"{PREFIX}layers.{index}."
    found = [matrix for name in MATRICES if (matrix := matrices.get(prefix + name)) is not None and matrix.fits()]
    norm, bias, mlp_norm = (prefix + name for name in VECTORS)
    if len(found) < len(MATRICES) or not {norm, bias, mlp_norm} <= graph.initializers.keys():
        return None
    qkv, output, gate, up, down = found
    if gate.format != up.format:
        return None
    scales = [f"{name}_scale" for name in cache_names(index + 1)[-2:]]
    return StepLayer(
        norm=norm,
        qkv=qkv.names,
        bias=bias,
        output=output.names,
        mlp_norm=mlp_norm,
        gate=gate.names,
        up=up.names,
        down=down.names,
        cache_scales=tuple(name for name in scales if name in graph.initializers),
    )


def _matrices(graph: ir.Graph) -> dict[str, StoredMatrix]:
    """Matrices that are multiplied by, by the checkpoint's name of their module."""
    found = {}
    for node in graph:
        weight = node.inputs[1] if node.op_type in ("MatMul", BLOCKS, FP8_WEIGHT) else None
        if weight is not None and weight.is_initializer():
            found[str(weight.name).partition(".weight")[0]] = _matrix(node, weight)
    return found


def _matrix(node: ir.Node, weight: ir.Value) -> StoredMatrix:
    if weight.shape is None or weight.dtype is None:
        raise ValueError(f"{weight.name} has neither shape nor type")
    first, second = weight.shape.numpy()[:2]
    if node.op_type == "MatMul":
        return StoredMatrix(StepLinear(str(weight.name), None), "MatMul", first, second, weight.dtype.bitwidth, 0)
    scales, numbers = node.inputs[2], node.attributes
    if scales is None:
        raise ValueError(f"{weight.name} has no scales")
    names, block = StepLinear(str(weight.name), str(scales.name)), numbers["block_size"].as_int()
    if node.op_type == FP8_WEIGHT:
        return StoredMatrix(names, FP8_WEIGHT, second, first, 8, block)
    inputs, outputs, bits = (numbers[name].as_int() for name in ("K", "N", "bits"))
    return StoredMatrix(names, BLOCKS, inputs, outputs, bits, block)
