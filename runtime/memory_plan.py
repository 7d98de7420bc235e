"""How much device memory a bundle takes while it answers: said before anything is loaded, and in `docs/jetson.md`.

weights   of all graphs; TensorRT holds a plan's once for all of its profiles
scratch   of one run: graphs run one after another and share the largest
cache     keys and values for the capacity that the plan was built for, filled or not
buffers   what graphs hand each other: a chunk's embeddings and hidden states, a run's patches, one row of logits
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .errors import ResourceError
from .manifest import ModelFacts
from .memory import cache_bytes
from .plans import AxisRange, EnginePlan

FLOAT_BYTES = 2
"""TensorRT's activations are float16 or bfloat16."""

LOGIT_BYTES = 4

STREAMING_SLACK = 512 * 2**20
"""An assumption, for nothing was streamed yet: the largest projection of the 7B model takes 136 MB in 16 bits."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, by what they are for."""

    weights: int
    scratch: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scratch + self.cache + self.buffers


@dataclass(frozen=True)
class Work:
    """The largest runs: rows of the KV cache, tokens of a prefill chunk, patches of a vision run."""

    capacity: int
    chunk_tokens: int
    patches: int


def plan_memory(model: ModelFacts, weights: int, scratch: int, work: Work) -> MemoryPlan:
    """Memory of a model with so many bytes of weights and of its hungriest run's scratch."""
    sizes = model.sizes()
    merged = -(-work.patches // model.merge**2)
    hidden_rows = 2 * work.chunk_tokens + merged  # a chunk's embeddings and hidden states; a vision run's embeddings
    buffers = work.patches * sizes.patch_values + FLOAT_BYTES * hidden_rows * model.hidden + LOGIT_BYTES * model.vocab
    return MemoryPlan(weights, scratch, cache_bytes(model, work.capacity, FLOAT_BYTES), buffers)


def plan_engines(model: ModelFacts, plans: Iterable[EnginePlan]) -> MemoryPlan:
    """Memory of the plans that one session runs (one a graph)."""
    chosen = list(plans)
    decoder = [plan for plan in chosen if plan.capacity]
    work = Work(
        capacity=max((plan.capacity for plan in decoder), default=0),
        chunk_tokens=max((profile["tokens"][2] for plan in decoder for profile in plan.profiles), default=0),
        patches=max((_patches(profile) for plan in chosen for profile in plan.profiles), default=0),
    )
    scratch = max((size for plan in chosen for size in plan.scratch_bytes), default=0)
    return plan_memory(model, sum(plan.weight_bytes for plan in chosen), scratch, work)


def resident_share(plan: MemoryPlan, plans: Iterable[EnginePlan], free: int) -> float:
    """Share of the streamable weights that stays in `free` bytes of device memory: 1 (none is streamed) where all fit.

    STREAMING_SLACK is left to the buffers that TensorRT streams through: it tells their size once a plan is loaded.
    """
    streamable = sum(each.weight_bytes for each in plans if each.weight_streaming)
    if not streamable or plan.total <= free:
        return 1.0
    room = free - (plan.total - streamable) - STREAMING_SLACK
    return min(1.0, max(0.0, room / streamable))


def without_streamed(plan: MemoryPlan, plans: Iterable[EnginePlan], share: float) -> MemoryPlan:
    """The plan with only that share of the streamable weights on the device."""
    streamable = sum(each.weight_bytes for each in plans if each.weight_streaming)
    return replace(plan, weights=plan.weights - round((1 - share) * streamable))


def check_fits(plan: MemoryPlan, free: int) -> None:
    """Raise ResourceError, with what takes how much, where a plan does not fit into `free` bytes."""
    if plan.total > free:
        parts = ", ".join(
            f"{name} {size / 1e6:.0f}"
            for name, size in (("weights", plan.weights), ("scratch", plan.scratch), ("KV cache", plan.cache))
        )
        raise ResourceError(
            f"the plans need {plan.total / 1e6:.0f} MB on the GPU ({parts}), {free / 1e6:.0f} MB are free; close other "
            "programs, build with a smaller --capacity or --max-patches or with --weight-streaming, or export with "
            "--precision int4"
        )


def _patches(profile: dict[str, AxisRange]) -> int:
    """Patches of the largest run that a vision profile takes; 0 for other graphs."""
    return profile["patches"][2] * profile["grids"][2] if "patches" in profile else 0
