"""From a plan's file to an engine that is what the contract says: ports, types, shapes, caches updated in place."""

from __future__ import annotations

import mmap
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import FLOAT, Port, Signature, cache_output
from ..errors import BundleError, CompatibilityError, ResourceError
from ..plans import EnginePlan
from .tensorrt_library import Library

DTYPES = {"float16": "HALF", "bfloat16": "BF16", "float32": "FLOAT", "int64": "INT64", "uint8": "UINT8"}


@cache
def runtime(library: Library) -> tuple[Any, list[str]]:
    """The process's one runtime of a library, and the errors that it logs: TensorRT keeps the first logger it gets."""
    base: Any = library.api.ILogger
    bad = (base.Severity.INTERNAL_ERROR, base.Severity.ERROR)
    errors: list[str] = []

    class Log(base):  # type: ignore[misc]  # untyped
        """Keeps errors."""

        def log(self, level: Any, text: str) -> None:
            if level in bad:
                errors.append(text)

    return library.api.Runtime(Log()), errors


def load_plan(library: Library, file: Path, plan: EnginePlan) -> Any:
    """Deserialise a plan (its hash was checked when the bundle was opened). The file is mapped, not copied.

    Raises CompatibilityError and ResourceError with the library's own reason.
    """
    made, errors = runtime(library)
    if plan.version_compatible and not library.lean:
        made.engine_host_code_allowed = True  # such a plan brings its own runtime along
    errors.clear()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        engine = made.deserialize_cuda_engine(view)
    if engine is not None:
        return engine
    reason = " ".join((errors or ["no reason given"])[0].split())[:200]
    if "memory" in reason.lower():
        raise ResourceError(
            f"{file.name} does not fit the GPU ({reason}); stop what else runs there, or export in int4"
        )
    raise CompatibilityError(
        f"{library.name} {library.version} cannot load {file.name} ({reason}); run `reflectrt build BUNDLE` here"
    )


def limit_weights(engine: Any, plan: EnginePlan, share: float) -> None:
    """Keep that share of the weights on the device, where the plan can stream them; before the first context is made.

    A plan without a budget keeps all of them there, as 1 does.
    """
    if plan.weight_streaming:
        engine.weight_streaming_budget_v2 = round(share * engine.streamable_weights_size)


def check_engine(engine: Any, plan: EnginePlan, signature: Signature, activation: str) -> None:
    """Raise BundleError where an engine's ports are not the contract's, or a cache has two addresses."""
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    ports = (*signature.inputs, *signature.outputs)
    if found != {port.name for port in ports}:
        odd = sorted(found ^ {port.name for port in ports})[0]
        raise BundleError(f"{plan.file} differs from the manifest at {odd!r}; run `reflectrt build BUNDLE` again")
    for port in ports:
        wanted = DTYPES[activation if port.dtype == FLOAT else port.dtype]
        shape, dtype = tuple(engine.get_tensor_shape(port.name)), engine.get_tensor_dtype(port.name).name
        if dtype != wanted or not _fits(shape, port, plan.capacity):
            raise BundleError(
                f"{plan.file} has {port.name} as {dtype} {list(shape)}, not {wanted} {list(port.axes)}; "
                "run `reflectrt build BUNDLE` again"
            )
    for port in signature.inputs:
        if "capacity" in port.axes and engine.get_aliased_input_tensor(cache_output(port.name)) != port.name:
            raise BundleError(f"{plan.file} copies {port.name}; run `reflectrt build BUNDLE` again")
    if engine.num_optimization_profiles != len(plan.profiles):
        raise BundleError(f"{plan.file} has other profiles than the manifest; run `reflectrt build BUNDLE` again")


def _fits(shape: tuple[int, ...], port: Port, capacity: int) -> bool:
    """Whether an engine's shape is a port's: -1 where it is free, the plan's capacity for a cache's rows."""
    axes = [capacity if axis == "capacity" else axis for axis in port.axes]
    return len(shape) == len(axes) and all(
        size == -1 if isinstance(axis, str) else size == axis for axis, size in zip(axes, shape, strict=True)
    )
