"""TensorRT plans: what a bundle records of each, and which of them a machine can run.

A plan is a graph compiled for one architecture by one library version. The ONNX file that it came from stays in the
bundle, so that another machine can build its own (`reflectrt build`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .contract import Signature
from .errors import BundleError, CompatibilityError

AxisRange = tuple[int, int, int]
"""Smallest, likeliest and largest number of a free axis."""

MOST, MOST_BYTES = 2**31, 2**48
"""Bounds on what a manifest may say, beyond any model there is."""


@dataclass(frozen=True)
class EnginePlan:
    """One plan of a bundle; its file's size and hash stand with those of all others."""

    graph: str
    file: str
    library: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    """The library's that built it, and (unless version compatible) the only one that runs it."""
    version_compatible: bool
    """Whether later versions of the same major run it too, the lean runtime included."""
    architecture: str
    """Compute capability, e.g. "SM87"."""
    cuda: str
    """The CUDA major that the library was built with, or "" where it does not say."""
    capacity: int
    """Rows of the KV cache; 0 for graphs without one."""
    profiles: tuple[dict[str, AxisRange], ...]
    """The free axes' ranges of each optimization profile, in the plan's order."""
    weight_bytes: int
    scratch_bytes: tuple[int, ...]
    """Device memory that a run takes besides weights, inputs and outputs, by profile."""
    weight_streaming: bool = False
    """Whether weights that do not fit the device may stay in host memory, copied in every run; since format 1.3."""


def check_plan(plan: EnginePlan, signature: Signature | None) -> None:
    """Raise BundleError where what a manifest says of a plan cannot be: the runtime computes and allocates from it."""
    free = {axis for port in signature.inputs for axis in port.axes if isinstance(axis, str)} if signature else set()
    has_cache = "capacity" in free
    sound = (
        signature is not None
        and plan.profiles
        and len(plan.profiles) == len(plan.scratch_bytes)
        and all(set(profile) == free - {"capacity"} for profile in plan.profiles)
        and all(0 < a <= b <= c <= MOST for profile in plan.profiles for a, b, c in profile.values())
        and all(0 <= size <= MOST_BYTES for size in (plan.weight_bytes, *plan.scratch_bytes))
        and (0 < plan.capacity <= MOST if has_cache else plan.capacity == 0)
    )
    if not sound:
        raise BundleError(f"manifest: the plan {plan.file!r} cannot be; run `reflectrt build BUNDLE` again")


@dataclass(frozen=True)
class Machine:
    """What a plan must fit: the library that is loaded and the GPU that is there."""

    library: str
    version: str
    architecture: str
    lean: bool = False


def runnable(plan: EnginePlan, machine: Machine) -> bool:
    """Whether this machine's library takes this plan. TensorRT refuses others only after reading all of it."""
    if plan.library != machine.library or plan.architecture != machine.architecture:
        return False
    if plan.version_compatible:
        built, here = version_numbers(plan.version), version_numbers(machine.version)
        return built[:1] == here[:1] and built <= here
    return not machine.lean and plan.version == machine.version


def choose(plans: Iterable[EnginePlan], machine: Machine, graph: str, capacity: int = 0) -> EnginePlan:
    """The smallest plan of a graph that this machine runs and whose cache has `capacity` rows or more.

    Raises CompatibilityError, which says what there is, what is wanted and how to get it.
    """
    found = [plan for plan in plans if plan.graph == graph]
    fitting = [plan for plan in found if runnable(plan, machine)]
    if not fitting:
        there = ", ".join(sorted({f"{plan.architecture} with {plan.library} {plan.version}" for plan in found}))
        raise CompatibilityError(
            f"this machine is {machine.architecture} with {machine.library} {machine.version}, the bundle has plans "
            f"for {there or 'nothing yet'}; run `reflectrt build BUNDLE` on this machine"
        )
    roomy = [plan for plan in fitting if plan.capacity >= capacity]
    if not roomy:
        most = max(plan.capacity for plan in fitting)
        raise CompatibilityError(
            f"the plans hold at most {most} tokens, {capacity} are wanted; "
            f"run `reflectrt build BUNDLE --capacity {capacity}`"
        )
    return min(roomy, key=lambda plan: plan.capacity)


def version_numbers(version: str) -> tuple[int, ...]:
    """ "10.16.1.11" as (10, 16, 1, 11)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
