"""How much memory a run's intermediate values take for each of its rows (tokens of the decoder, patches of vision).

The engine plans its runs by it, so it goes into the ONNX file's metadata. Counted are the values alive at once in the
order of the nodes, of those that grow with the rows; what operators take inside themselves is not.
"""

from __future__ import annotations

import onnx_ir as ir

from ...runtime.engines.cuda_runs import ROW_BYTES


def note_row_bytes(model: ir.Model) -> None:
    """Write the count into the model's metadata; 0 for graphs whose values do not grow."""
    model.metadata_props[ROW_BYTES] = str(row_bytes(model.graph))


def row_bytes(graph: ir.Graph) -> int:
    """The most bytes for a row that are alive while one node runs."""
    nodes = list(graph)
    last_read = {value: place for place, node in enumerate(nodes) for value in node.inputs if value is not None}
    kept = {*graph.outputs}
    sizes: dict[ir.Value, int] = {value: 0 for value in graph.inputs}  # the caller's, as outputs are
    alive = most = 0
    for place, node in enumerate(nodes):
        made = [value for value in node.outputs if value in last_read and value not in kept]
        for value in made:
            sizes[value] = _row(value, node, sizes)
        alive += sum(sizes[value] for value in made)
        most = max(most, alive)
        done = {value for value in node.inputs if value is not None and last_read[value] == place and value not in kept}
        alive -= sum(sizes.get(value, 0) for value in done)
    return most


def _row(value: ir.Value, node: ir.Node, sizes: dict[ir.Value, int]) -> int:
    """Bytes of a value's innermost axis; where the rewriting left no shape, as many as the largest input's."""
    if node.op_type in ("Shape", "Constant"):
        return 0
    if value.shape is None or value.dtype is None or not len(value.shape):
        return max((sizes.get(source, 0) for source in node.inputs if source is not None), default=0)
    width = value.shape[-1]
    grows = any(not isinstance(axis, int) for axis in value.shape[:-1])
    return int(width * value.dtype.itemsize) if grows and isinstance(width, int) else 0
