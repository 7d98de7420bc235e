"""A graph's ONNX file as TensorRT takes it: the KV cache's rows a fixed number."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import ExportError


def read_graph(file: Path, capacity: int) -> bytes:
    """The file's model with every "capacity" axis fixed; its weights stay where they are.

    TensorRT updates a cache in place only where the network's input has a fixed number of rows.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise ExportError("building plans needs onnx; run `pip install onnx`") from None
    model = onnx.load(str(file), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "capacity":
                axis.dim_value = capacity
    del model.graph.value_info[:]  # shapes between nodes were inferred for any capacity
    data: bytes = model.SerializeToString()
    return data
