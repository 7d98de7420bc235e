"""The memory tables of docs/jetson.md, from the planner that the runtime checks with.

    python -m reflectrt.bench.jetson_memory

Weights follow from the published configurations. Scratch is what TensorRT-RTX 1.7 reported for single layers of the 7B
shape (`bench/results/tensorrt_builds.json`; layers share it), linear in the cache's rows between the measured ones. A
TensorRT of JetPack may take more or less: `reflectrt build` on the device records its own, which the runtime uses.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..runtime.manifest import ModelFacts
from ..runtime.memory_plan import MemoryPlan, Work, plan_memory

BITS = {"bf16": 16.0, "int8": 8.0, "fp8": 8.0, "int4": 4.5}
"""Of one weight, int4 with a bfloat16 scale for each block of 32."""

MODULES = {"Orin Nano 8 GB": 8, "Orin NX 16 GB": 16, "AGX Orin 64 GB": 64, "Thor 128 GB": 128}
WITHOUT_FP8 = ("Orin Nano 8 GB", "Orin NX 16 GB", "AGX Orin 64 GB")
SYSTEM_BYTES = 2 * 10**9
"""Left to the system and the process: an assumption, no measurement; a desktop takes more."""

CHUNK_TOKENS = 1024
# Bytes of scratch by rows of the cache: the 7B shape's decoder layer, bfloat16, chunks of 1,024 tokens, SM86.
DECODER_SCRATCH = {2048: 136_148_992, 4096: 140_371_456, 8192: 207_734_272, 16384: 400_786_432, 32768: 786_890_752}
VISION_SCRATCH = {4096: 295_200_000, 16384: 580_700_000}
"""Bytes of scratch by patches of one grid (4,096: not built, the batch profile of 8 x 1,024 in its place)."""

CAPACITIES = (4096, 8192, 16384, 32768)
GRID_TOKENS = 256
"""Visual tokens of two frames of 448 x 448 px."""
TEXT_TOKENS = 256
"""Left for question and answer."""


@dataclass(frozen=True)
class Published:
    """A published model: what the planner needs, and parameters by kind."""

    facts: ModelFacts
    linears: int
    """Parameters of quantizable Linears, head included."""
    table: int
    """Of the token table, stored like a tied head."""
    others: int
    """Norms and biases."""


def published(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int) -> Published:
    """A Qwen2.5-VL language model of these sizes with the vision encoder that all of them share."""
    head_dim = 128
    keys = kv_heads * head_dim
    decoder = layers * (2 * hidden * heads * head_dim + 2 * hidden * keys + 3 * hidden * mlp)
    width, depth, inner, group = 1280, 32, 3420, 4 * 1280
    vision = 1176 * width + depth * (4 * width**2 + 3 * width * inner) + group**2 + group * hidden
    others = layers * (2 * hidden + heads * head_dim + 2 * keys) + depth * (6 * width + 3 * inner) + 2 * group
    facts = ModelFacts(hidden, layers, kv_heads, head_dim, vocab, 3, 14, 2, 2, 8, 2.0, 128_000)
    return Published(facts, decoder + vision + vocab * hidden, vocab * hidden, others)


# config.json of Qwen2.5-VL-3B-Instruct and -7B-Instruct. A plan stores a tied head's table again.
MODELS = {
    "3B": published(2048, 36, 16, 2, 11_008, 151_936),
    "7B": published(3584, 28, 28, 4, 18_944, 152_064),
}


def memory(model: Published, precision: str, capacity: int, patches: int) -> MemoryPlan:
    """What the planner says of a model at a precision."""
    bits = BITS[precision]
    weights = int((model.linears + model.table) * bits + model.others * 16) // 8
    scratch = max(_between(DECODER_SCRATCH, capacity), _between(VISION_SCRATCH, patches))
    return plan_memory(model.facts, weights, scratch, Work(capacity, CHUNK_TOKENS, patches))


def largest_capacity(model: Published, precision: str, gigabytes: int, patches: int) -> int:
    """Rows of the largest cache that fits a module, in steps of 1,024; 0 where not even 2,048 do."""
    free = gigabytes * 10**9 - SYSTEM_BYTES
    fitting = [rows for rows in range(2048, 32_769, 1024) if memory(model, precision, rows, patches).total <= free]
    return max(fitting, default=0)


def frames(capacity: int) -> int:
    """Frames of 448 x 448 px that a context holds beside question and answer."""
    return max(0, (capacity - TEXT_TOKENS) // GRID_TOKENS * 2)


def _between(measured: dict[int, int], size: int) -> int:
    """A measured figure, or the straight line between its neighbours; the nearest one outside of them."""
    sizes = sorted(measured)
    below = max((s for s in sizes if s <= size), default=sizes[0])
    above = min((s for s in sizes if s >= size), default=sizes[-1])
    if below == above:
        return measured[below]
    share = (size - below) / (above - below)
    return round(measured[below] + share * (measured[above] - measured[below]))


def needs_table() -> list[str]:
    """What each model takes, by precision and capacity."""
    lines = [
        "| model | precision | weights | scratch | " + " | ".join(f"total at {rows:,}" for rows in CAPACITIES) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(CAPACITIES),
    ]
    for name, model in MODELS.items():
        for precision in BITS:
            plans = [memory(model, precision, rows, 16_384) for rows in CAPACITIES]
            cells = [f"{plan.total / 1e9:.1f} GB" for plan in plans]
            scratch = f"{plans[0].scratch / 1e9:.1f} to {plans[-1].scratch / 1e9:.1f} GB"
            lines.append(
                f"| {name} | {precision} | {plans[0].weights / 1e9:.1f} GB | {scratch} | {' | '.join(cells)} |"
            )
    return lines


def modules_table() -> list[str]:
    """The largest context, and frames in it, on each module."""
    lines = [
        "| model | precision | " + " | ".join(MODULES) + " |",
        "| --- | --- |" + " --- |" * len(MODULES),
    ]
    for name, model in MODELS.items():
        for precision in BITS:
            cells = [_cell(model, precision, module) for module in MODULES]
            lines.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return lines


def _cell(model: Published, precision: str, module: str) -> str:
    if precision == "fp8" and module in WITHOUT_FP8:
        return "no FP8"
    patches = 4096 if MODULES[module] <= 8 else 16_384
    capacity = largest_capacity(model, precision, MODULES[module], patches)
    return f"{capacity:,} tokens, {frames(capacity)} frames" if capacity else "does not fit"


def main() -> int:
    """Print both tables."""
    print("\n".join([*needs_table(), "", *modules_table()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
