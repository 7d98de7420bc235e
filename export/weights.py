"""Bind a traced graph's initializers to the checkpoint's tensors, and stream them to disk one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir import external_data
from torch import Tensor

from ..runtime.errors import ExportError
from .checkpoint import Checkpoint
from .trace import TRANSPOSED

TORCH_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
"""Element types of a traced graph's weights."""

TIED_HEAD = ("lm_head.weight", "model.language_model.embed_tokens.weight")

# Constants stay inside the .onnx file; page-sized alignment lets engines map the weights instead of copying them.
INLINE_BYTES = 1024
ALIGNMENT = 4096

Progress = Callable[[int], None]
"""Called with the number of weight bytes just written."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie in a bundle."""

    file: str
    offset: int
    length: int


def bind_weights(model: ir.Model, checkpoint: Checkpoint) -> set[str]:
    """Point every empty initializer at its checkpoint tensor, read, laid out and cast only when written.

    Returns the checkpoint tensors that the graph uses. Raises ExportError where the checkpoint lacks one.
    """
    used = set()
    for value in model.graph.initializers.values():
        if value.const_value is not None and not _is_fake(value.const_value):
            continue
        source = source_name(checkpoint, str(value.name))
        if source not in checkpoint.tensors:
            raise ExportError(f"the {model.graph.name} graph wants {source}, which is not there; please report this")
        transposed = TRANSPOSED in value.metadata_props
        value.const_value = _lazy(checkpoint, source, value, transposed)
        used.add(source)
    return used


def source_name(checkpoint: Checkpoint, weight: str) -> str:
    """The checkpoint tensor behind a graph's weight: itself, but for a tied head."""
    head, table = TIED_HEAD
    return table if weight == head and checkpoint.text.tied else weight


def write_weights(model: ir.Model, folder: Path, file: str, progress: Progress) -> dict[str, StoredTensor]:
    """Stream all large initializers into `folder/file` and make the model refer to it; says where each lies.

    A model that has none gets no file.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    if not any(tensor is not None and tensor.nbytes > INLINE_BYTES for tensor in tensors):
        return {}
    external_data.unload_from_model(
        model,
        folder,
        file,
        size_threshold_bytes=INLINE_BYTES,
        alignment=ALIGNMENT,
        callback=lambda tensor, _: progress(tensor.nbytes),
    )
    return {
        str(value.name): StoredTensor(file, tensor.offset or 0, tensor.length or 0)
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }


def lift_weights(model: ir.Model, names: Iterable[str]) -> dict[str, ir.TensorProtocol]:
    """Make the named initializers, those that the graph has, its inputs for an engine to bind; returns their data."""
    lifted = {}
    for name in names:
        value = model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            lifted[name] = value.const_value
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return lifted


def write_tensors(
    tensors: Mapping[str, ir.TensorProtocol], folder: Path, file: str, progress: Progress
) -> dict[str, StoredTensor]:  # fmt: skip
    """Stream tensors into `folder/file`; says where each lies."""
    written = external_data.convert_tensors_to_external(
        list(tensors.values()),
        folder,
        file,
        callback=lambda tensor, _: progress(tensor.nbytes),
        alignment=ALIGNMENT,
        align_threshold=INLINE_BYTES,
    )
    pairs = zip(tensors, written, strict=True)
    return {name: StoredTensor(file, tensor.offset or 0, tensor.length or 0) for name, tensor in pairs}


def share_tied_head(model: ir.Model, stored: Mapping[str, StoredTensor], folder: Path) -> bool:
    """Make the head refer to the token table's bytes, in whatever form both are; False where they are not the same."""
    head, table = TIED_HEAD
    large = {
        str(name): value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES
    }
    pairs = {name: stored.get(name.replace(head, table)) for name in large}
    if not all(there and _same_bytes(large[name], there, folder) for name, there in pairs.items()):
        return False
    for name, there in pairs.items():
        if there:
            _share_weight(model, name, there, folder)
    return True


def share_weights(model: ir.Model, stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Make initializers that are stored already refer to their bytes; ValueError where they have another size."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and (there := stored.get(str(name))):
            if value.const_value.nbytes != there.length:
                raise ValueError(f"{name} is stored with {there.length} bytes, not {value.const_value.nbytes}")
            _share_weight(model, str(name), there, folder)


def _same_bytes(tensor: ir.TensorProtocol, stored: StoredTensor, folder: Path) -> bool:
    if tensor.nbytes != stored.length:
        return False
    with (folder / stored.file).open("rb") as file:
        file.seek(stored.offset)
        return tensor.tobytes() == file.read(stored.length)


def _share_weight(model: ir.Model, name: str, stored: StoredTensor, folder: Path) -> None:
    """Make an initializer refer to bytes that another graph's file already holds."""
    value = model.graph.initializers[name]
    tensor = value.const_value
    if tensor is None:
        raise KeyError(f"{name} has neither shape nor type")
    value.const_value = ir.ExternalTensor(
        stored.file,
        stored.offset,
        stored.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=folder,
    )


def _lazy(checkpoint: Checkpoint, source: str, value: ir.Value, transposed: bool) -> ir.LazyTensor:
    if value.dtype is None:
        raise ValueError(f"{value.name} has no type")
    dtype = TORCH_TYPES[value.dtype]

    def load() -> ir.TensorProtocol:
        tensor = _lay_out(checkpoint.read(source), transposed).to(dtype)
        return ir.tensor(tensor, name=value.name)  # a view, turned when it is written: some lowerings turn it back

    shape = ir.Shape(value.shape.numpy() if value.shape else ())
    return ir.LazyTensor(load, dtype=value.dtype, shape=shape, name=value.name)


def _lay_out(tensor: Tensor, transposed: bool) -> Tensor:
    """[out, ...in] -> [in, out] for the weights that MatMul reads from the right; others as they are."""
    return tensor.flatten(1).t() if transposed else tensor


def _is_fake(tensor: ir.TensorProtocol) -> bool:
    return isinstance(getattr(tensor, "raw", None), torch._subclasses.FakeTensor)
