"""Recipes that need no calibration, and how much a recipe stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from ...runtime import contract
from ...runtime.errors import ExportError
from ..checkpoint import Checkpoint
from ..recipe import EIGHT_BITS, FORMAT, FORMAT_MAJOR, FORMAT_MINOR, GraphRecipe, LinearRecipe, Recipe
from ..tensors import HEAD, TensorRef
from ..weights import TIED_HEAD

TABLE = TIED_HEAD[1]
BLOCK = 32
"""Rows that share a scale in 4-bit weights; ONNX Runtime's and TensorRT's kernels have it."""
BITS = {"int8": 8.0, "int8-weights": 8.0, "fp8": 8.0, "int4-weights": 4.0}
SCALE_BITS = 32
WEIGHTS_ONLY: dict[str, LinearRecipe] = {
    "int8-weights": LinearRecipe("int8-weights"),
    "int4": LinearRecipe("int4-weights", block=BLOCK),
}
TABLE_SCHEMES: dict[str, LinearRecipe] = {
    "int8": LinearRecipe("int8-weights"),
    "int8-weights": LinearRecipe("int8-weights"),
    "fp8": LinearRecipe("int8-weights"),
    "int4": LinearRecipe("int4-weights", block=BLOCK),
}
"""How the token table is stored, by precision: like a tied head, so that both keep sharing their bytes."""
FLOATS = ("fp32", "fp16", "bf16")


def default_recipe(checkpoint: Checkpoint, precision: str) -> Recipe | None:
    """None for a float precision; all Linears' weights alone where that needs no ranges; else ExportError."""
    if precision in FLOATS:
        return None
    if precision not in WEIGHTS_ONLY:
        raise ExportError(
            f"{precision} needs the ranges of activations; run `reflectrt calibrate` and pass its file with --recipe"
        )
    chosen = WEIGHTS_ONLY[precision]
    graphs = {name: GraphRecipe(dict.fromkeys(weights, chosen)) for name, weights in linear_weights(checkpoint).items()}
    graphs[contract.EMBED] = table_recipe(precision)
    version = (FORMAT_MAJOR, FORMAT_MINOR)
    return Recipe(FORMAT, version, "", precision, graphs, (), None, None)  # type: ignore[arg-type]  # by WEIGHTS_ONLY


def linear_weights(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Weights of the Linears of each graph; the reflection head is left alone: its output is fed back K times."""
    matrices = [name for name, ref in checkpoint.tensors.items() if len(ref.shape) > 1]
    return {
        contract.VISION: [name for name in matrices if name.startswith("model.visual.")],
        contract.DECODER: [name for name in matrices if name.startswith("model.language_model.layers.")],
        contract.HEAD: [HEAD],
    }


def table_recipe(precision: str) -> GraphRecipe:
    """The embed graph's part of a recipe."""
    return GraphRecipe({TABLE: TABLE_SCHEMES[precision]})


def without_eight_bit_layers(recipe: Recipe) -> Recipe:
    """The recipe with layers of 8-bit weights and float activations as they are; the token table stays in 8 bits."""
    graphs = {
        name: graph if name == contract.EMBED else GraphRecipe(_others(graph)) for name, graph in recipe.graphs.items()
    }
    return replace(recipe, graphs=graphs)


def eight_bits_for_float_inputs(recipe: Recipe) -> Recipe:
    """The recipe for a target that rounds activations of the decoder's MLPs alone, and encodes vision in floats.

    Of fp8 weights whose inputs stay floats only the rounding is left, of 3 bits: there 8-bit integers with a scale a
    row take as much room and are nearer (relative error 0.7 % for 2.7 in the attention of `assets/reference`). Vision
    stays as in the checkpoint. What was folded to spare inputs that are not rounded now is not.
    """
    graphs = {
        name: GraphRecipe({weight: _eight_bits(weight, linear) for weight, linear in graph.linears.items()})
        for name, graph in recipe.graphs.items()
        if name != contract.VISION
    }
    as_before = {
        weight
        for name, graph in graphs.items()
        for weight, linear in graph.linears.items()
        if linear == recipe.graphs[name].linears[weight]
    }
    folds = tuple(fold for fold in recipe.folds if as_before.intersection(fold.readers))
    return replace(recipe, graphs=graphs, folds=folds)


def _eight_bits(weight: str, linear: LinearRecipe) -> LinearRecipe:
    return EIGHT_BITS if linear.scheme == "fp8" and ".mlp." not in weight else linear


def _others(graph: GraphRecipe) -> dict[str, LinearRecipe]:
    return {weight: linear for weight, linear in graph.linears.items() if linear.scheme != "int8-weights"}


def stored_bytes(tensors: Mapping[str, TensorRef], recipe: Recipe | None, float_bytes: int) -> int:
    """Bytes that the weights take in a bundle."""
    chosen = {
        name: linear for graph in (recipe.graphs.values() if recipe else ()) for name, linear in graph.linears.items()
    }
    return sum(_bits(ref.shape, chosen.get(name), 8 * float_bytes) for name, ref in tensors.items()) // 8


def _bits(shape: tuple[int, ...], linear: LinearRecipe | None, float_bits: int) -> int:
    count = prod(shape)
    if linear is None:
        return count * float_bits
    scales = count // linear.block if linear.block else shape[0]
    return int(count * BITS[linear.scheme]) + scales * SCALE_BITS
