"""Quantized Linears for ONNX Runtime's CPU provider.

    int8 activations and weights  ->  QuantizeLinear (uint8, shared by what reads x) -> MatMulIntegerToFloat with bias
    weights alone, and the head   ->  MatMulNBits (8 or 4 bits; accuracy_level 4: it rounds activations by block itself)
    float8                        ->  left as it is: dequantized while loading, to measure its accuracy anywhere

One W8A8 form serves prefill and single steps over one copy of the weights: measured with ONNX Runtime 1.32 on AVX2,
it is 1.95 times as fast as float32 at 1,024 rows, where MatMulNBits is 0.6 to 1.1 times, and no slower than that at one
row (`docs/quantization_speed.md`). Activations are unsigned because no kernel for signed ones comes with x86's integer
instructions before AVX-VNNI-INT8: there they run 6 times slower.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from ..quantize.lazy import Array, add_initializer, data
from .quantized_linears import BITS, QuantizedLinear, find_quantized_linears, pack_blocks

MICROSOFT = "com.microsoft"
ZERO_POINT = 128
CHANNEL_BLOCK = 128
"""Inputs of a block where a whole channel shares its scale, which the kernel cannot say: it is then repeated."""
INT8_COMPUTE = 4
"""MatMulNBits' accuracy level that multiplies integers; the others dequantize weights, 20 to 60 times slower."""


def lower_quantized(model: ir.Model) -> None:
    """Rewrite the quantized Linears of a portable graph in place."""
    rounded: dict[tuple[str, str], ir.Value] = {}
    for linear in list(find_quantized_linears(model)):
        if linear.dtype == ir.DataType.FLOAT8E4M3FN:
            continue
        if linear.input_scale is not None and linear.input_axis == 0:
            replacement = _integer_product(model.graph, linear, rounded)
        else:
            replacement = _block_product(model.graph, linear)
        _take_over(linear.result, replacement.outputs[0])
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)


def _integer_product(graph: ir.Graph, linear: QuantizedLinear, rounded: dict[tuple[str, str], ir.Value]) -> ir.Node:
    if linear.input_scale is None:
        raise ValueError(f"{linear.name} has no input scale")
    key = (str(linear.x.name), str(linear.input_scale.name))
    if key not in rounded:
        rounded[key] = _rounded(graph, linear, linear.input_scale)
    zero = _zero_point(graph)
    node = ir.node(
        "MatMulIntegerToFloat",
        [rounded[key], linear.weight, linear.input_scale, linear.scale, zero, None, linear.bias_value],
        domain=MICROSOFT,
        name=f"{linear.name}/MatMulIntegerToFloat",
    )
    return _placed(graph, linear, node)


def _rounded(graph: ir.Graph, linear: QuantizedLinear, scale: ir.Value) -> ir.Value:
    """`x` as uint8 around 128, just before the first Linear that reads it."""
    node = ir.node("QuantizeLinear", [linear.x, scale, _zero_point(graph)], name=f"{linear.name}/QuantizeLinear")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{node.name}_output", linear.x.shape, ir.TensorType(ir.DataType.UINT8)
    graph.insert_before(linear.node, node)
    return output


def _zero_point(graph: ir.Graph) -> ir.Value:
    return add_initializer(
        graph, "activation_zero_point", ir.DataType.UINT8, (), lambda: np.array(ZERO_POINT, np.uint8)
    )


def _block_product(graph: ir.Graph, linear: QuantizedLinear) -> ir.Node:
    bits, block = BITS[linear.dtype], linear.block or CHANNEL_BLOCK
    blocks = -(-linear.inputs // block)
    weight_name, scale_name = f"{linear.weight.name}_packed", f"{linear.scale.name}_packed"
    shape = (linear.outputs, blocks, block * bits // 8)
    weight = add_initializer(graph, weight_name, ir.DataType.UINT8, shape, lambda: _packed(linear, bits, block))
    dtype = linear.scale.dtype or ir.DataType.FLOAT
    scale = add_initializer(graph, scale_name, dtype, (linear.outputs, blocks), lambda: _block_scales(linear, blocks))
    node = ir.node(
        "MatMulNBits",
        [linear.x, weight, scale, None, None, linear.bias_value],
        {"K": linear.inputs, "N": linear.outputs, "bits": bits, "block_size": block, "accuracy_level": INT8_COMPUTE},
        domain=MICROSOFT,
        name=f"{linear.name}/MatMulNBits",
    )
    return _placed(graph, linear, node)


def _packed(linear: QuantizedLinear, bits: int, block: int) -> Array:
    return pack_blocks(_by_output(data(linear.weight).astype(np.int8), linear), bits, block)


def _block_scales(linear: QuantizedLinear, blocks: int) -> Array:
    """[out, blocks]."""
    scales = data(linear.scale)
    return np.repeat(scales[:, None], blocks, axis=1) if scales.ndim == 1 else _by_output(scales, linear)


def _by_output(numbers: Array, linear: QuantizedLinear) -> Array:
    """[out, ...] from a weight or its scales, whichever way they are stored."""
    return numbers if linear.input_axis == 1 else numbers.T


def _placed(graph: ir.Graph, linear: QuantizedLinear, node: ir.Node) -> ir.Node:
    """The node where the Linear's last one is."""
    graph.insert_before(linear.nodes[-1], node)
    return node


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Everything that reads the old value, the graph's caller included, reads the new one under the same name."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = f"{old.name}_replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
