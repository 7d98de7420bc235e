"""The costliest operators of every graph, by ONNX Runtime's own profiler, in a round of their own."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.engines.onnxruntime import OrtCpuEngine
from ...runtime.session import Model
from .report import Operator
from .scenario import FOLLOW_UPS, Subject, Workload

TOP = 10
Event = Mapping[str, Any]


def measure_operators(
    bundle: Bundle, work: Workload, threads: int
) -> tuple[dict[str, tuple[Operator, ...]], list[Event]]:
    """The ten costliest operators of each graph over one warm round, and their events for a trace.

    The bundle is opened once more: ONNX Runtime profiles a session from its start or not at all. So the first round is
    in its profile too; both run the same graphs equally often, and the later half of the events is the second.
    """
    with TemporaryDirectory() as folder:
        engine = OrtCpuEngine(bundle, threads, operator_times=Path(folder))
        subject = Subject(Model(bundle, engine))
        for _ in range(2):
            subject.round(work, FOLLOW_UPS)
        profiles = {name: nodes(json.loads(file.read_text())) for name, file in engine.end_profiling().items()}
    warm = {name: events[len(events) // 2 :] for name, events in profiles.items()}
    operators = {name: costliest(events) for name, events in warm.items()}
    return operators, [event | {"graph": name} for name, events in warm.items() for event in events]


def nodes(events: Iterable[Event]) -> list[Any]:
    """The events that are an operator's run."""
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def costliest(events: Iterable[Event], top: int = TOP) -> tuple[Operator, ...]:
    """Operators by time over all layers; shares are of all the graph's operators."""
    micros: dict[tuple[str, str], int] = defaultdict(int)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    for event in nodes(events):
        key = spoken_name(event["name"], event["args"]["op_name"]), event["args"]["op_name"]
        micros[key] += event["dur"]
        calls[key] += 1
    whole = max(1, sum(micros.values()))
    ranked = sorted(micros, key=lambda key: micros[key], reverse=True)[:top]
    return tuple(Operator(*key, micros[key] / 1e6, micros[key] / whole, calls[key]) for key in ranked)


def spoken_name(event: str, op: str) -> str:
    """A node's name without its layer: `layers.*.mlp.down_proj`; where tracing made the name up, the operator."""
    name = event.removesuffix("_kernel_time").split("/")[0]
    name = re.sub(r"^model\.(language_model|visual)\.", "", name)
    return op if name.startswith("node_") or "." not in name else re.sub(r"\.\d+\.", ".*.", name)
