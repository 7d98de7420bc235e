"""What a profile says, as frozen dataclasses; `--json` is exactly this, under a version.

Seconds end in `_s`, bytes in `_bytes`, rates in `_per_s`. Format 1.x only ever gains fields.
"""

from __future__ import annotations

import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

FORMAT = "reflectrt-profile"
VERSION = (1, 0)


@dataclass(frozen=True)
class Environment:
    """Where the figures come from."""

    device: str
    driver: str
    threads: int
    clock: str
    load_average: float
    """Of the machine over the minute before the measurement."""
    versions: dict[str, str]


@dataclass(frozen=True)
class BundleFacts:
    """Which bundle was measured; `verified` is its own record of a comparison with PyTorch."""

    path: str
    sha256: str
    target: str
    precision: str
    source: str
    size_bytes: int
    verified: bool


@dataclass(frozen=True)
class WorkloadFacts:
    """What it was asked; `question_tokens` counts the prompt's text after the medium, template included."""

    medium: str
    kind: str
    frames: int
    grid: tuple[int, ...]
    visual_tokens: int
    question_tokens: int
    context_tokens: int
    reflection_steps: int
    answer_tokens: int
    warm_up: int
    runs: int


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most; the ceiling of bytes is the larger of copying and reading."""

    float_ops_per_s: float
    integer_ops_per_s: float
    """0 on GPUs, whose bundles have no products of integers."""
    copy_bytes_per_s: float
    read_bytes_per_s: float
    element: str
    side: int
    """Of the square matrices."""
    copied_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """The ceiling of bytes."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)

    def best(self, again: Ceilings | None) -> Ceilings:
        """The higher of each rate and of one measured later: a ceiling found on a busy machine is too low."""
        if again is None:
            return self
        rates = ("float_ops_per_s", "integer_ops_per_s", "copy_bytes_per_s", "read_bytes_per_s")
        return replace(self, **{rate: max(getattr(self, rate), getattr(again, rate)) for rate in rates})


@dataclass(frozen=True)
class StageWork:
    """Work of a stage (of the median measurement's graphs), its rates, and its shares of the two ceilings."""

    float_ops: int
    integer_ops: int
    weight_bytes: int
    activation_bytes: int
    cache_bytes: int
    between_bytes: int
    ops_per_s: float
    bytes_per_s: float
    compute_share: float | None
    bandwidth_share: float | None
    bound: str | None
    """compute, memory, or neither: below a quarter of both ceilings."""

    @property
    def bytes_moved(self) -> int:
        """What must move."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes


@dataclass(frozen=True)
class Stage:
    """One stage: percentiles over `samples`, and its work where the graphs were counted."""

    name: str
    samples: int
    p50_s: float
    p90_s: float
    p99_s: float
    work: StageWork | None


@dataclass(frozen=True)
class Total:
    """What a user waits for: wall time, and the sum of its stages, which is more where they overlap (median)."""

    name: str
    samples: int
    p50_s: float
    p90_s: float
    p99_s: float
    sum_s: float


@dataclass(frozen=True)
class Memory:
    """Where memory goes. Peaks are of the whole process, by stage; None where the system does not tell."""

    weight_bytes: dict[str, int]
    cache_bytes: int
    cache_tokens: int
    activation_bytes: int
    """The largest peak, of the process or the GPU, over what it held before the medium was opened; less the cache."""
    process_bytes: int
    peaks: dict[str, int]
    device_peaks: dict[str, int]
    free_bytes: int
    context_fits: int
    """Tokens whose cache fits beside everything else, at most the bundle's own limit."""
    context_limit: int


@dataclass(frozen=True)
class Operator:
    """An operator over all layers: `name` has `*` for the layer's number."""

    name: str
    op: str
    seconds: float
    share: float
    calls: int


@dataclass(frozen=True)
class Rival:
    """The same cold question in PyTorch; `ratio` is its time over the bundle's."""

    name: str
    dtype: str
    samples: int
    p50_s: float
    p90_s: float
    p99_s: float
    read_s: float
    vision_s: float
    prefill_s: float
    step_s: float
    decoder_runs: int
    same_option: bool
    ratio: float


@dataclass(frozen=True)
class Overhead:
    """What measuring cost, as a share of the cold question: spans recorded times the cost of one."""

    spans: int
    second_per_span: float
    share: float


@dataclass(frozen=True)
class Profile:
    """One bundle's profile."""

    bundle: BundleFacts
    workload: WorkloadFacts
    stages: tuple[Stage, ...]
    totals: tuple[Total, ...]
    memory: Memory | None
    operators: dict[str, tuple[Operator, ...]]
    overhead: Overhead
    advice: tuple[str, ...]

    def stage(self, name: str) -> Stage | None:
        """A stage by name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def total(self, name: str) -> Total:
        """A total by name."""
        return next(total for total in self.totals if total.name == name)


@dataclass(frozen=True)
class Report:
    """Everything measured in one run: the bundle, those compared with it, PyTorch."""

    format: str
    version: tuple[int, ...]
    environment: Environment
    ceilings: Ceilings | None
    profiles: tuple[Profile, ...]
    """The bundle first, then those of `--compare`, measured alternately with it."""
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON's own types."""
    return asdict(report)


def schema() -> dict[str, Any]:
    """The JSON schema of a report; `docs/profile-schema.json` is this."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{FORMAT} {VERSION[0]}.{VERSION[1]}",
        **_schema(Report),
    }


def _schema(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        properties = {field.name: _schema(hints[field.name]) for field in fields(hint)}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(choice) for choice in args]}
    if origin is tuple:
        return {"type": "array", "items": _schema(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(args[1])}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {"type": names[hint]}


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=1))
