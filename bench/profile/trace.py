"""A round as a Chrome trace, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .recorder import GraphRun, Span
from .scenario import Phase, Round

ROUND, OPERATORS = 1, 2  # processes of the trace
USER_TRACK = 0


def chrome_trace(turn: Round, operators: Sequence[Any]) -> dict[str, Any]:
    """What the user waited for, the stages by thread and the graphs below them; operators of a round of their own."""
    phases = {
        "open medium": turn.opening,
        "cold question": turn.cold,
        **{f"follow-up question #{number}": phase for number, phase in enumerate(turn.follow_ups, start=1)},
        "free text": turn.free,
    }
    begin_s = turn.opening.start_s
    threads = _threads(phases.values())
    events = [_event(name, "wait", phase.start_s, phase.end_s, USER_TRACK, begin_s) for name, phase in phases.items()]
    for phase in phases.values():
        events += [_span(span, "stage", threads, begin_s) for span in phase.stages]
        events += [_span(run, "graph", threads, begin_s) for run in phase.graphs]
    names = _names(ROUND, "one round", {USER_TRACK: "user", **{track: f"thread {track}" for track in threads.values()}})
    return {"traceEvents": [*names, *events, *_operator_events(operators)], "displayTimeUnit": "ms"}


def _threads(phases: Iterable[Phase]) -> dict[int, int]:
    """A track for every thread that ran a stage, in order of appearance."""
    idents = dict.fromkeys(span.thread for phase in phases for span in (*phase.stages, *phase.graphs))
    return {ident: number for number, ident in enumerate(idents, start=1)}


def _event(name: str, kind: str, start_s: float, end_s: float, track: int, begin_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "cat": kind,
        "ph": "X",
        "ts": round(1e6 * (start_s - begin_s), 3),
        "dur": round(1e6 * (end_s - start_s), 3),
        "pid": ROUND,
        "tid": track,
    }


def _span(span: Span, kind: str, threads: dict[int, int], begin_s: float) -> dict[str, Any]:
    event = _event(span.name, kind, span.start_s, span.end_s, threads[span.thread], begin_s)
    if isinstance(span, GraphRun):
        sizes = {name: list(shape) for name, shape in span.shapes if "cache" not in name}
        event["args"] = {"inputs": sizes, "past_length": span.past}
    return event


def _operator_events(operators: Sequence[Any]) -> list[dict[str, Any]]:
    """ONNX Runtime's events, a track for each graph; every track starts at its own first operator."""
    graphs = list(dict.fromkeys(event["graph"] for event in operators))
    first = {name: min(event["ts"] for event in operators if event["graph"] == name) for name in graphs}
    tracks = {name: number for number, name in enumerate(graphs, start=1)}
    events = [
        {
            "name": event["name"].removesuffix("_kernel_time"),
            "cat": event["args"]["op_name"],
            "ph": "X",
            "ts": event["ts"] - first[event["graph"]],
            "dur": event["dur"],
            "pid": OPERATORS,
            "tid": tracks[event["graph"]],
        }
        for event in operators
    ]
    return [*_names(OPERATORS, "operators, in a round of their own", {t: n for n, t in tracks.items()}), *events]


def _names(process: int, title: str, tracks: dict[int, str]) -> list[dict[str, Any]]:
    named = [{"name": "process_name", "ph": "M", "pid": process, "args": {"name": title}}]
    for track, name in tracks.items():
        named.append({"name": "thread_name", "ph": "M", "pid": process, "tid": track, "args": {"name": name}})
    return named
