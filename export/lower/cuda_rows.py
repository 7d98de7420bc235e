"""Float matrices of a decoder as checkpoints store them, [out, in]: kernels of our own read them row by row.

    MatMul(x, W [in, out])  ->  FusedMatMul(x, W [out, in], transB=1)

A thread of theirs takes 16 neighbouring bytes of a row (`runtime/kernels/step.cu`), and ONNX Runtime's sessions read
the same copy. Quantized matrices lie so already.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .block_weights import MICROSOFT, take_over


def read_rows(model: ir.Model) -> None:
    """Rewrite a lowered decoder's products by float matrices in place; matrices keep their names."""
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and len(weight.uses()) == 1:
            _turn(weight)
            name = str(node.name).replace("/MatMul", "/FusedMatMul")
            product = ir.node("FusedMatMul", node.inputs, {"transB": 1}, domain=MICROSOFT, name=name)
            model.graph.insert_before(node, product)
            take_over(node.outputs[0], product.outputs[0])
            model.graph.remove(node, safe=True)


def _turn(weight: ir.Value) -> None:
    """[in, out] -> [out, in], when it is written: no copy where it is a view of the checkpoint's [out, in]."""
    columns = weight.const_value
    if columns is None:
        raise ValueError(f"{weight.name} has no data; bind the weights first")
    shape = ir.Shape(columns.shape.numpy()[::-1])

    def rows() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(columns.numpy().T), dtype=columns.dtype, name=weight.name)

    weight.shape = shape
    weight.const_value = ir.LazyTensor(rows, dtype=columns.dtype, shape=shape, name=weight.name)
