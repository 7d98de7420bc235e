"""A decoder in the forms that a target runs it in, over one copy of its weights.

    short   a graph for runs of any length, ONNX Runtime's
    long    a layer's attention alone: long runs with fp8 MLPs multiply those outside ONNX Runtime
    steps   runs of a few tokens by kernels of our own, where the target has such and they fit the decoder

Sessions of an engine share no initializers, but any number of them, and kernels, can read one address. So what more
than one form reads is an input of the files; the bytes lie in a file of their own, which the manifest indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ..runtime import contract
from ..runtime.manifest import LongForm, StepForm, StoredWeight, WeightDtype
from .facts import TextFacts
from .lower.cuda_fp8 import LONG_RUN, layer_attention, mlp_steps
from .lower.cuda_segments import Segments
from .steps import step_form, step_weights
from .targets import Target
from .weights import Progress, StoredTensor, lift_weights, write_tensors

DTYPES: dict[ir.DataType, WeightDtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.UINT8: "uint8",
    ir.DataType.FLOAT8E4M3FN: "float8e4m3fn",
}


@dataclass(frozen=True)
class Forms:
    """A lowered graph, and what else runs over its weights."""

    short: ir.Model
    shared: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    """Weights that are inputs: all of them of the short form, and of the long one those that it reads."""
    steps: StepForm | None = None
    long: ir.Model | None = None
    """A layer's attention; MLPs are multiplied between."""
    mlp_steps: tuple[tuple[float, float], ...] = ()
    """What the MLPs of long runs divide by (`LongForm.mlp_steps`)."""
    segments: Segments | None = None
    """A vision encoder between its attentions, where the target has kernels for those and they fit it."""


def lower_forms(model: ir.Model, name: str, target: Target, text: TextFacts) -> Forms:
    """Lower a quantized graph in place; a decoder in all forms that the target has and that fit it."""
    if name == contract.VISION and target.cut_vision is not None:
        segments = target.cut_vision(model.clone())
        return Forms(target.lower(model), segments=segments)
    if name != contract.DECODER or target.lower_rows is None:
        return Forms(target.lower(model))
    divided = mlp_steps(model, text.layers)
    short = target.lower(model)
    steps = step_form(short, text)
    if steps is None:
        return Forms(short)
    target.lower_rows(short)
    shared = lift_weights(short, step_weights(steps))
    if divided is None or not _alike(steps, shared):
        return Forms(short, shared, steps)
    return Forms(short, shared, steps, layer_attention(short.clone(), steps), divided)


def _alike(steps: StepForm, shared: Mapping[str, ir.TensorProtocol]) -> bool:
    """Whether one graph can run the attention of all layers: their weights have the same types and shapes."""
    kinds = {
        tuple((shared[name].dtype, tuple(shared[name].shape.numpy())) for name in layer.attention_names())
        for layer in steps.layers
    }
    return len(kinds) == 1


def long_form(forms: Forms, name: str) -> LongForm | None:
    """What the manifest says of the form for long runs, if there is one."""
    return LongForm(f"{name}_long.onnx", LONG_RUN, forms.mlp_steps) if forms.long is not None else None


def write_long(forms: Forms, name: str, folder: Path) -> LongForm | None:
    """Save the form for long runs, if there is one; its weights are inputs."""
    form = long_form(forms, name)
    if form is not None and forms.long is not None:
        ir.save(forms.long, folder / form.file)
    return form


def write_shared(forms: Forms, name: str, folder: Path, progress: Progress) -> tuple[StoredWeight, ...]:
    """Stream the weights that are inputs into a file of their own, if there are any."""
    if not forms.shared:
        return ()
    return shared_weights(forms.shared, write_tensors(forms.shared, folder, shared_file(name), progress))


def shared_file(name: str) -> str:
    """The file of a graph's weights that are inputs."""
    return f"{name}_shared.data"


def shared_weights(
    shared: Mapping[str, ir.TensorProtocol], stored: Mapping[str, StoredTensor]
) -> tuple[StoredWeight, ...]:
    """The manifest's index of shared weights."""
    return tuple(
        StoredWeight(name, DTYPES[tensor.dtype], tuple(tensor.shape.numpy()), stored[name].file, stored[name].offset)
        for name, tensor in shared.items()
    )
