"""Recipes for tests: every Linear of a checkpoint alike."""

from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.quantize.plain import linear_weights
from reflectrt.export.recipe import FORMAT, FORMAT_MAJOR, FORMAT_MINOR, Fold, GraphRecipe, LinearRecipe, Origin, Recipe


def uniform(checkpoint: Checkpoint, scheme: str, scale: float = 0.05, folds: tuple[Fold, ...] = ()) -> Recipe:
    """Every Linear in one static scheme with one input scale."""
    linear = LinearRecipe(scheme, input_scale=scale)  # type: ignore[arg-type]
    graphs = {name: GraphRecipe(dict.fromkeys(weights, linear)) for name, weights in linear_weights(checkpoint).items()}
    version, origin = (FORMAT_MAJOR, FORMAT_MINOR), Origin("minmax", 0.5, 8, "ab" * 32)
    return Recipe(FORMAT, version, checkpoint.fingerprint(), scheme, graphs, folds, None, origin)  # type: ignore[arg-type]
