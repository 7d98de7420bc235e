"""Hold a built plan against its recipe: every Linear computes in the number format that it was given."""

from __future__ import annotations

import re

from ...runtime.errors import BundleError, ExportError
from ...runtime.manifest import Manifest
from .report import EngineLayer, EngineReport

_NODE = re.compile(r"(/\d)?/(MatMul|Gemm|Gather)$")
"""What a node of a Linear has behind its name; projections that were split count their parts."""
READS: dict[str, tuple[str, bool]] = {
    "int8": ("int8", True),
    "fp8": ("float8e4m3fn", True),
    "int8-weights": ("int8", False),
    "int4-weights": ("int4", False),
}
"""By scheme: the stored type of the weight, and whether the activation comes in it too."""
SMALL = {dtype for dtype, _ in READS.values()}


def quantized_weights(manifest: Manifest, graph: str | None) -> dict[str, str]:
    """Scheme of each quantized weight of a graph (None: of all), by its name in the checkpoint."""
    graphs = (manifest.recipe or {}).get("graphs", {})
    try:
        found = {
            weight: linear["scheme"]
            for name, part in graphs.items()
            if graph in (None, name)
            for weight, linear in part["linears"].items()
        }
    except (AttributeError, KeyError, TypeError):  # free data of whoever wrote the manifest
        raise BundleError("manifest.recipe does not say how each layer is quantized; export the bundle again") from None
    if strange := set(found.values()) - set(READS):
        raise BundleError(f"manifest.recipe has the schemes {sorted(map(str, strange))}; export the bundle again")
    return found


def check_precision(report: EngineReport, graph: str, weights: dict[str, str], activation: str) -> None:
    """Raise ExportError where a kernel computes a Linear in another type than the recipe's.

    Weights without a scheme must be read in the activation type: nothing is quantized behind our back.
    """
    for weight, scheme in weights.items():
        name = weight.removesuffix(".weight")
        layers = [layer for layer in report.layers if _computes(layer, name)]
        if not any(_reads(layer, scheme) for layer in layers):
            found = sorted({dtype for layer in layers for dtype in layer.constants})
            raise ExportError(
                f"TensorRT computes {name} in {', '.join(found) or 'no kernel'}, not {scheme}; report this"
            )
    quantized = {weight.removesuffix(".weight") for weight in weights}
    for layer in report.layers:
        linears = _linears(layer)
        stays = not weights or (linears and not linears & quantized)
        if stays and SMALL & {*layer.inputs, *layer.constants}:
            name = ", ".join(sorted(linears)) or graph
            raise ExportError(f"TensorRT quantized {name}, which is to stay in {activation}; please report this")


def _computes(layer: EngineLayer, name: str) -> bool:
    """Whether a kernel holds this Linear's product (or a table's look-up)."""
    return name in _linears(layer)


def _linears(layer: EngineLayer) -> set[str]:
    """Names of the Linears and tables in a kernel."""
    return {_NODE.sub("", node) for node in layer.nodes if _NODE.search(node)}


def _reads(layer: EngineLayer, scheme: str) -> bool:
    stored, activations_too = READS[scheme]
    if not layer.inputs:  # it only writes the weight out dequantized, for a product in the wider type
        return False
    return stored in layer.constants and (stored in layer.inputs or not activations_too)
