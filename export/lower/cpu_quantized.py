"""Quantized Linears for ONNX Runtime's CPU provider.

    int8 activations and weights  ->  QuantizeLinear (uint8, shared by what reads x) -> MatMulIntegerToFloat with bias
    weights alone, and the head   ->  MatMulNBits (8 or 4 bits; accuracy_level 4: it rounds activations by block itself)
    the token table               ->  GatherBlockQuantized, over the very bytes of a tied head
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

from ..quantize.lazy import add_initializer
from .block_weights import MICROSOFT, block_look_up, block_product, take_over
from .quantized_linears import QuantizedLinear, find_quantized_linears, find_quantized_tables

ZERO_POINT = 128
CHANNEL_BLOCK = 128
"""Inputs of a block where a whole channel shares its scale, which the kernel cannot say: it is then repeated."""
INT8_COMPUTE = 4
"""MatMulNBits' accuracy level that multiplies integers; the others dequantize weights, 20 to 60 times slower."""


def lower_quantized(model: ir.Model) -> None:
    """Rewrite the quantized Linears and tables of a portable graph in place."""
    rounded: dict[tuple[str, str], ir.Value] = {}
    for linear in list(find_quantized_linears(model)):
        if linear.dtype == ir.DataType.FLOAT8E4M3FN:
            continue
        static = linear.input_scale is not None and linear.input_axis == 0
        node = _integer_product(model.graph, linear, rounded) if static else _block_product(model.graph, linear)
        take_over(linear.result, node.outputs[0])
    for table in list(find_quantized_tables(model)):
        take_over(table.node.outputs[0], block_look_up(model.graph, table, table.block or CHANNEL_BLOCK))
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
    node = block_product(graph, linear, linear.block or CHANNEL_BLOCK, linear.bias_value, INT8_COMPUTE)
    return _placed(graph, linear, node)


def _placed(graph: ir.Graph, linear: QuantizedLinear, node: ir.Node) -> ir.Node:
    """The node where the Linear's last one is."""
    graph.insert_before(linear.nodes[-1], node)
    return node
