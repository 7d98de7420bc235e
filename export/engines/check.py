"""Hold a network and a built plan against the contract: names, order, types, shapes, and caches updated in place."""

from __future__ import annotations

from typing import Any

from ...runtime.contract import FLOAT, Port, Signature, cache_output
from ...runtime.engines.tensorrt_library import Library
from ...runtime.errors import ExportError
from .profiles import Profile, shapes, with_capacity
from .report import EnginePort, EngineReport

NETWORK_DTYPES = {
    "HALF": "float16",
    "BF16": "bfloat16",
    "FLOAT": "float32",
    "INT64": "int64",
    "UINT8": "uint8",
}
PLEASE = "please report this"


def check_network(library: Library, network: Any, signature: Signature, activation: str, capacity: int) -> None:
    """Raise ExportError where a parsed network's ports are not the contract's, or a cache would be copied."""
    inputs = [_network_port(network.get_input(i)) for i in range(network.num_inputs)]
    outputs = [_network_port(network.get_output(i)) for i in range(network.num_outputs)]
    _check_ports(inputs, signature.inputs, activation, capacity)
    _check_ports(outputs, signature.outputs, activation, capacity)
    caches = {port.name for port in signature.inputs if "capacity" in port.axes}
    updated = _caches_updated_in_place(library, network)
    if updated != {name: cache_output(name) for name in caches}:
        raise ExportError(f"TensorRT would copy the caches {sorted(caches - set(updated))}; {PLEASE}")


def check_report(
    found: EngineReport, signature: Signature, activation: str, capacity: int, profiles: tuple[Profile, ...]
) -> None:
    """Raise ExportError where a plan's ports or its profiles' shapes are not what was asked for."""
    _check_ports(list(found.inputs), signature.inputs, activation, capacity)
    _check_ports(list(found.outputs), signature.outputs, activation, capacity)
    for port, built in zip(signature.inputs, found.inputs, strict=True):
        wanted = tuple(shapes(port, profile, capacity) for profile in profiles)
        if built.shapes != wanted:
            raise ExportError(f"the plan takes {port.name} as {built.shapes}, not {wanted}; {PLEASE}")


def _check_ports(found: list[EnginePort], wanted: tuple[Port, ...], activation: str, capacity: int) -> None:
    if [port.name for port in found] != [port.name for port in wanted]:
        raise ExportError(f"TensorRT has {[p.name for p in found]}, not {[p.name for p in wanted]}; {PLEASE}")
    for port, built in zip(wanted, found, strict=True):
        dtype = activation if port.dtype == FLOAT else port.dtype
        if built.dtype != dtype:
            raise ExportError(f"TensorRT has {built.name} in {built.dtype}, not {dtype}; {PLEASE}")
        axes = with_capacity(port, capacity)
        fits = len(axes) == len(built.axes) and all(
            is_free(here) if isinstance(axis, str) else here == axis
            for axis, here in zip(axes, built.axes, strict=False)
        )
        if not fits:
            raise ExportError(f"TensorRT has {built.name} {list(built.axes)}, not {list(axes)}; {PLEASE}")


def is_free(size: int) -> bool:
    """Whether an axis of a network or plan may have any size."""
    return size == -1


def _network_port(tensor: Any) -> EnginePort:
    dtype = tensor.dtype.name
    return EnginePort(tensor.name, NETWORK_DTYPES.get(dtype, dtype), tuple(tensor.shape), ())


def _caches_updated_in_place(library: Library, network: Any) -> dict[str, str]:
    """Network inputs that a cache update reads, with the outputs that it writes: TensorRT makes these one buffer."""
    kind = library.api.LayerType.KV_CACHE_UPDATE
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    updates = [layer for layer in layers if layer.type == kind]
    return {
        layer.get_input(0).name: layer.get_output(0).name
        for layer in updates
        if layer.get_input(0).is_network_input and layer.get_output(0).is_network_output
    }
