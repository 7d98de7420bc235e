"""Each layer's own damage: everything float but this one, over recorded inputs of the whole single-pass decode.

Damage is the mean Kullback-Leibler divergence (nats) of the next-token distribution after every reflection step and at
the answer, against the float model over the very same inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ..export.checkpoint import Checkpoint
from ..export.lower.block_weights import MICROSOFT
from ..export.quantize.apply import quantize
from ..export.recipe import EIGHT_BITS, GraphRecipe, LinearRecipe, Recipe
from ..export.weights import source_name
from ..runtime import contract
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.engine import Array
from ..runtime.engines.onnxruntime import OrtGraph
from .recorder import Recording, Replay, record
from .samples import Sample

SAMPLES = 8
SMALL = {"max_frames": 4, "max_pixels": 448 * 448}
"""What is looked at of a medium: a layer is judged by all samples, and there are many layers."""

Progress = Callable[[int, int], None]


def measure(float_bundle: Path, samples: Sequence[Sample], recipe: Recipe, progress: Progress) -> dict[str, float]:
    """The damage of every Linear that the recipe quantizes to less than sparing gives, by its weight's name."""
    bundle = open_bundle(float_bundle)
    recordings = record(bundle, samples[:SAMPLES], **SMALL)
    graphs = {name: _open(bundle.file(entry.file), name) for name, entry in bundle.manifest.graphs.items()}
    replay = Replay(bundle, graphs)
    wanted = [_log_shares(replay.logits(recording, {})) for recording in recordings]
    wide = spared_form(recipe)
    trials = [
        (graph, weight)
        for graph, part in recipe.graphs.items()
        for weight, linear in part.linears.items()
        if graph != contract.EMBED and linear != wide
    ]
    found = {}
    for number, (graph, weight) in enumerate(trials, 1):
        changed = {graph: _trial(bundle, graph, weight, recipe)}
        found[weight] = _damage(replay, recordings, wanted, changed)
        progress(number, len(trials))
    return found


def propose(checkpoint: Checkpoint, damage: Mapping[str, float], budget: float) -> list[str]:
    """Weights to spare: the most damage by parameter first, up to this share of all parameters measured."""
    sizes = {weight: prod(checkpoint.tensors[source_name(checkpoint, weight)].shape) for weight in damage}
    left = budget * sum(sizes.values())
    chosen = []
    for weight in sorted(damage, key=lambda weight: damage[weight] / sizes[weight], reverse=True):
        if damage[weight] > 0 and sizes[weight] <= left:
            chosen.append(weight)
            left -= sizes[weight]
    return chosen


def spared_form(recipe: Recipe) -> LinearRecipe | None:
    """What a spared layer becomes: 8 bits of weight and float activations, or, from those, what the checkpoint has."""
    return None if recipe.precision == "int8-weights" else EIGHT_BITS


def spare(recipe: Recipe, damage: Mapping[str, float], spared: Sequence[str]) -> Recipe:
    """The recipe with these layers in their spared form, with every layer's damage written down."""
    if recipe.origin is None:
        raise ValueError("only a calibrated recipe has an origin to write to")
    wide = spared_form(recipe)
    graphs = {}
    for name, graph in recipe.graphs.items():
        rest = {weight: linear for weight, linear in graph.linears.items() if weight not in spared}
        widened = {weight: wide for weight in graph.linears if wide and weight in spared}
        graphs[name] = GraphRecipe(rest | widened)
    return replace(recipe, graphs=graphs, origin=replace(recipe.origin, damage=dict(damage), spared=tuple(spared)))


def _trial(bundle: Bundle, graph: str, weight: str, recipe: Recipe) -> OrtGraph:
    """A graph with this one Linear quantized, what is folded into it folded."""
    folds = tuple(fold for fold in recipe.folds if weight in fold.readers)
    only = {graph: GraphRecipe({weight: recipe.graph(graph).linears[weight]})}
    source = bundle.file(bundle.manifest.graphs[graph].file)
    model = ir.load(source)
    quantize(model, replace(recipe, graphs=only, folds=folds), graph)
    model.opset_imports.setdefault(MICROSOFT, 1)
    target = source.with_suffix(".trial.onnx")
    ir.save(model, target)
    return _open(target, graph)


def _open(file: Path, name: str) -> OrtGraph:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return OrtGraph(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]), name)


def _damage(
    replay: Replay, recordings: Sequence[Recording], wanted: Sequence[Array], changed: Mapping[str, OrtGraph]
) -> float:
    divergences = []
    for recording, expected in zip(recordings, wanted, strict=True):
        found = _log_shares(replay.logits(recording, changed))
        divergences.append((np.exp(expected) * (expected - found)).sum(axis=-1))
    return float(max(0.0, np.concatenate(divergences).mean()))


def _log_shares(logits: Array) -> Array:
    """Log-probabilities [..., vocab] in float64."""
    wide = logits.astype(np.float64)
    shares: Array = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)
    return shares
