"""A bundle of the published 7B model's shape whose weights are not there yet: graphs and manifest, a few MB.

Timings need the shape and any weights. Writing the graphs takes a minute of tracing on any machine; the 16 GB of
weights are drawn where they are measured (`bench/gpu/weights.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir
import torch

from ...export.bundle import IMAGE, VIDEO, _model_facts, _reflection
from ...export.checkpoint import Checkpoint
from ...export.facts import TextFacts, VisionFacts
from ...export.forms import Forms, lower_forms, shared_file, shared_weights, write_long
from ...export.graphs.makers import graph_makers
from ...export.inputs import GraphConfig
from ...export.prompt import prompt_tokens
from ...export.quantize.apply import quantize
from ...export.quantize.kv_cache import CACHE_TYPES
from ...export.quantize.plain import default_recipe, linear_weights, table_recipe
from ...export.recipe import FORMAT, FORMAT_MAJOR, FORMAT_MINOR, GraphRecipe, KVCacheRecipe, LinearRecipe, Recipe
from ...export.segments import OWN_FILE, own_weights, save_segments
from ...export.targets import TARGETS
from ...export.tensors import TensorRef, expected_shapes
from ...export.trace import trace
from ...export.weights import ALIGNMENT, StoredTensor, bind_weights
from ...runtime import contract
from ...runtime import manifest as manifests
from ...runtime.bundle import TOKENIZER
from ...runtime.errors import ExportError
from ...runtime.manifest import FileEntry, GraphEntry, Manifest, ModelFacts, Source
from ..random_checkpoint import make_checkpoint
from .shape import MAX_CONTEXT, TEXT_7B, VISION_7B
from .weights import cache_scale

WEIGHTS_FREE = "0" * 64
"""In place of a hash: the files that it would name are drawn later."""


def write_skeleton(
    folder: Path,
    precision: str,
    kv_cache: Literal["int8", "fp8"] | None = None,
    text: TextFacts = TEXT_7B,
    vision: VisionFacts = VISION_7B,
) -> None:
    """Write graphs, manifest and tokenizer of the shape for the CUDA target into a new folder.

    Raises ExportError for a `kv_cache` beside a float precision, which no recipe has.
    """
    folder.mkdir(parents=True)
    target = TARGETS["cuda"]
    dtype = target.precisions[precision]
    with tempfile.TemporaryDirectory() as small:
        checkpoint = _shaped(Checkpoint.open(make_checkpoint(Path(small) / "checkpoint")), text, vision)
        (folder / TOKENIZER).write_bytes((checkpoint.path / TOKENIZER).read_bytes())
        recipe = _recipe(checkpoint, precision, kv_cache)
        facts = _model_facts(checkpoint, MAX_CONTEXT, target.cache_dtype(recipe))
        traced = contract.signatures(_model_facts(checkpoint, MAX_CONTEXT).sizes())
        sizes: dict[str, int] = {}
        graphs: dict[str, GraphEntry] = {}
        for name, make in graph_makers(text, vision, None, dtype).items():
            model = trace(make, GraphConfig(traced[name], dtype), name)
            bind_weights(model, checkpoint)
            if recipe is not None:
                quantize(model, recipe, name, target.numbers)
            forms = lower_forms(model, name, target, text)
            signature = contract.signatures(facts.sizes())[name]
            plain = GraphEntry(f"{name}.onnx", signature.inputs, signature.outputs, step_form=forms.steps)
            graphs[name] = _save_forms(plain, name, forms, folder, sizes)
        manifest = _manifest(checkpoint, precision, dtype, facts, graphs, sizes)
    (folder / manifests.FILE_NAME).write_text(manifests.dump(manifest), encoding="utf-8")


def _recipe(checkpoint: Checkpoint, precision: str, kv_cache: Literal["int8", "fp8"] | None) -> Recipe | None:
    """A recipe as the target stores it; None for a float precision."""
    recipe = _fp8_recipe(checkpoint) if precision == "fp8" else default_recipe(checkpoint, precision)
    if recipe is None:
        if kv_cache:
            raise ExportError("a float precision has no recipe that could quantize the KV cache")
        return None
    recipe = replace(recipe, kv_cache=_cache(kv_cache, checkpoint.text) if kv_cache else None)
    return TARGETS["cuda"].adapt(recipe)


def _fp8_recipe(checkpoint: Checkpoint) -> Recipe:
    """fp8 everywhere; activations behind a norm have a deviation of about 1, so a step of 1 rounds none away."""
    fp8 = LinearRecipe("fp8", input_scale=1.0)
    graphs = {name: GraphRecipe(dict.fromkeys(weights, fp8)) for name, weights in linear_weights(checkpoint).items()}
    graphs[contract.EMBED] = table_recipe("fp8")
    return Recipe(FORMAT, (FORMAT_MAJOR, FORMAT_MINOR), "", "fp8", graphs, (), None, None)


def _cache(kind: Literal["int8", "fp8"], text: TextFacts) -> KVCacheRecipe:
    """Scales for keys and values of deviation 1, as random weights behind a norm give them."""
    scale = cache_scale(CACHE_TYPES[kind].dtype.name.lower())
    rows = ((scale,) * (text.kv_heads * text.head_dim),) * text.layers
    return KVCacheRecipe(kind, rows, rows)


def _shaped(checkpoint: Checkpoint, text: TextFacts, vision: VisionFacts) -> Checkpoint:
    """The small checkpoint's tokens with the large one's sizes; its tensors have names and shapes only."""
    shapes = expected_shapes(text, vision)
    refs = {name: TensorRef(checkpoint.path / "absent", name, shape, "bfloat16") for name, shape in shapes.items()}
    return replace(checkpoint, text=text, vision=vision, tensors=MappingProxyType(refs))


def _save_forms(entry: GraphEntry, name: str, forms: Forms, folder: Path, sizes: dict[str, int]) -> GraphEntry:
    """Write a graph's files and add the sizes of those of its weights; returns its entry with all forms."""
    inside = _save(forms.short, folder, entry.file, sizes)
    if forms.segments is not None:
        own = _lay_out(own_weights(forms.segments, inside), OWN_FILE, sizes)
        block_form, weights = save_segments(forms.segments, inside | own, folder)
        return replace(entry, block_form=block_form, weights=weights)
    entry = replace(entry, long_form=write_long(forms, name, folder))
    stored = _lay_out(forms.shared, shared_file(name), sizes)
    return replace(entry, weights=shared_weights(forms.shared, stored))


def _save(model: ir.Model, folder: Path, file: str, sizes: dict[str, int]) -> dict[str, StoredTensor]:
    """Write a graph whose every weight has its place in a file beside it, whose size is added; returns the places."""
    stored = _point_at_file(model, f"{file}.data", sizes)
    ir.save(model, folder / file)
    return stored


def _point_at_file(model: ir.Model, file: str, sizes: dict[str, int]) -> dict[str, StoredTensor]:
    """Give every weight its place in `file`, whose size is added. Scales that need no weight stay, and sizes."""
    known = {f"{value.name}_scale" for value in model.graph.inputs}
    large: dict[str, ir.TensorProtocol] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.LazyTensor):
            continue
        sizes_alone = tensor.dtype == ir.DataType.INT64
        if sizes_alone or value.name in known:
            value.const_value = ir.tensor(tensor.numpy(), name=value.name)
        else:
            large[str(value.name)] = tensor
    stored = _lay_out(large, file, sizes)
    for name, place in stored.items():
        tensor = large[name]
        shape = ir.Shape(tensor.shape.numpy())
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            file, place.offset, place.length, tensor.dtype, shape=shape, name=name
        )
    return stored


def _lay_out(tensors: Mapping[str, ir.TensorProtocol], file: str, sizes: dict[str, int]) -> dict[str, StoredTensor]:
    """A place in `file` for each tensor; the file's size is added where there is one."""
    stored, end = {}, 0
    for name, tensor in tensors.items():
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        stored[name] = StoredTensor(file, offset, tensor.nbytes)
        end = offset + tensor.nbytes
    if stored:
        sizes[file] = end
    return stored


def _manifest(
    checkpoint: Checkpoint,
    precision: str,
    dtype: torch.dtype,
    facts: ModelFacts,
    graphs: dict[str, GraphEntry],
    sizes: dict[str, int],
) -> Manifest:
    return Manifest(
        format=manifests.FORMAT,
        version=(manifests.FORMAT_MAJOR, manifests.FORMAT_MINOR),
        target="cuda",
        precision=precision,
        activation={torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype],
        model=facts,
        prompt=prompt_tokens(checkpoint.tokens, checkpoint.tokenizer()),
        reflection=_reflection(checkpoint),
        image=IMAGE,
        video=VIDEO,
        graphs=graphs,
        source=Source("random weights of the 7B shape", WEIGHTS_FREE, "bfloat16"),
        tools={},
        engine=TARGETS["cuda"].engine,
        recipe=None,
        verification=None,
        plans=(),
        files={name: FileEntry(size, WEIGHTS_FREE) for name, size in sizes.items()},
    )
