"""A decoder in two forms over one copy of its weights: one for steps, one for long runs, where a target has both.

Sessions of an engine share no initializers, but any number of them can be bound to one address. So weights that both
forms read are inputs of both files; their bytes lie in a file of their own, which the manifest indexes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ..runtime import contract
from ..runtime.manifest import StoredWeight
from .recipe import Recipe
from .targets import Target
from .weights import StoredTensor, lift_weights

SHARED = ir.DataType.FLOAT8E4M3FN
"""Element type of the weights that both forms read."""


@dataclass(frozen=True)
class Forms:
    """A lowered graph, and the same for long runs where the target has one."""

    short: ir.Model
    long: ir.Model | None = None
    shared: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    """Weights that are inputs of both."""


def lower_forms(model: ir.Model, name: str, target: Target, recipe: Recipe | None) -> Forms:
    """Lower a quantized graph in place, and a copy of a decoder for long runs if the target runs those otherwise."""
    rounded = recipe is not None and recipe.precision == "fp8"
    long = target.lower_long(model.clone()) if target.lower_long and rounded and name == contract.DECODER else None
    short = target.lower(model)
    if long is None:
        return Forms(short)
    shared, again = lift_weights(short, SHARED), lift_weights(long, SHARED)
    if shared.keys() != again.keys():
        raise ValueError(f"the two forms of {name} read different weights: {sorted(shared.keys() ^ again.keys())}")
    return Forms(short, long, shared)


def shared_weights(
    shared: Mapping[str, ir.TensorProtocol], stored: Mapping[str, StoredTensor]
) -> tuple[StoredWeight, ...]:
    """The manifest's index of shared weights."""
    return tuple(
        StoredWeight(name, "float8e4m3fn", tuple(tensor.shape.numpy()), stored[name].file, stored[name].offset)
        for name, tensor in shared.items()
    )
