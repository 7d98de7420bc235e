"""Quantized weights for ONNX Runtime's CUDA provider.

    8- and 4-bit weights of the decoder and the head  ->  MatMulNBits
    their fp8 weights                                 ->  MatMulBlockQuantizedFp8Weight
    the token table                                   ->  GatherBlockQuantized

The vision encoder has none: of 16,000 rows a product reads its weights once, in few bits or many, so rounding would
cost answers and save no time (`quantize/plain.py` takes it out of recipes). Rounded integer activations have no place
here: MatMulInteger reaches 129 of an H100's 1,979 TOP/s, QOrderedMatMul does not initialise; they are refused. Those of
an fp8 recipe stay in bfloat16, which is nearer to the float model, but for the MLPs of long runs (`cuda_fp8.py`).
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .block_weights import MICROSOFT, block_look_up, block_product, fp8_product, take_over
from .quantized_linears import find_quantized_linears, find_quantized_tables

CHANNEL_BLOCK = 128
"""Inputs of a block where a whole channel shares its scale, which the kernel cannot say: it is then repeated."""
LONGEST_FP8_BLOCK = 4096
"""fp8 channels up to so long have one scale: 3,584 inputs take 31 us a row, and 34 with a scale for CHANNEL_BLOCK;
18,944 take 57 and 39 (H100, matrices of the 7B shape's MLP)."""


def lower_quantized(model: ir.Model) -> None:
    """Rewrite the quantized Linears and tables of a portable decoder, head or embed graph in place."""
    for linear in list(find_quantized_linears(model)):
        if linear.dtype == ir.DataType.FLOAT8E4M3FN:
            short = linear.inputs <= LONGEST_FP8_BLOCK
            node = fp8_product(model.graph, linear, linear.inputs if short else CHANNEL_BLOCK)
        elif linear.input_scale is None:
            node = block_product(model.graph, linear, linear.block or CHANNEL_BLOCK, bias=None)
        else:
            raise ValueError(f"{linear.name} rounds its activations to integers, which the CUDA target does not run")
        model.graph.insert_before(linear.node, node)
        take_over(linear.node.outputs[0], node.outputs[0])
    for table in list(find_quantized_tables(model)):
        take_over(table.node.outputs[0], block_look_up(model.graph, table, table.block or CHANNEL_BLOCK))
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)
