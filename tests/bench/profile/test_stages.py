"""Spans to stages, with times one can add up in one's head."""

import pytest
from reflectrt.bench.profile.recorder import GraphRun, Log, RecordingEngine, Span, SpanClock, seconds_per_span
from reflectrt.bench.profile.scenario import Phase
from reflectrt.bench.profile.stages import Sample, first_token_s, steps, timing, tokens, unsteady


def stage(name, start, end):
    return Span(name, start, end, 1)


def ran(name, start, end):
    return GraphRun(name, start, end, 1, (), 0)


def test_percentiles_lie_between_measurements():
    assert timing([1.0, 2.0, 3.0]).p50_s == 2.0
    assert timing([float(n) for n in range(101)]).p90_s == 90.0
    assert timing([5.0]).p99_s == 5.0


def test_stages_whose_halves_differ_are_told():
    found = {
        "head": [Sample(1.0)] * 4 + [Sample(1.2)] * 4,
        "vision": [Sample(1.0)] * 4 + [Sample(1.05)] * 4,
        "prefill": [Sample(2.0), Sample(1.0)],  # too few to say
    }
    assert unsteady(found) == {"head": pytest.approx(0.2)}


def test_a_reflection_step_reaches_from_one_decoder_run_to_the_next():
    phase = Phase(0, 9, [stage("reflect", 1, 8)], [ran("decoder", 2, 4), ran("reflect", 4, 5), ran("decoder", 5, 7)])
    found = steps(phase)
    assert [step.seconds for step in found] == [3, 3]
    assert [run.name for run in found[1].graphs] == ["reflect", "decoder"]


def test_decoder_runs_of_other_stages_are_no_steps():
    assert steps(Phase(0, 9, [stage("prefill", 0, 3)], [ran("decoder", 1, 2)])) == []


def test_tokens_across_a_reflection_window_are_left_out():
    graphs = [ran("head", 1, 2), ran("decoder", 2, 3), ran("head", 3, 4), ran("decoder", 5, 6), ran("head", 8, 9)]
    phase = Phase(0, 9, [stage("reflect", 5, 6)], graphs)
    assert [token.seconds for token in tokens(phase)] == [2]
    assert first_token_s(phase) == 2


def test_a_clock_keeps_spans_and_still_adds_up():
    log = Log()
    clock = SpanClock(log)
    for _ in range(2):
        with clock.stage("vision"):
            pass
    taken = log.take()
    assert [span.name for span in taken.stages] == ["vision", "vision"]
    assert clock.timings()["vision"] == pytest.approx(sum(span.seconds for span in taken.stages))
    assert log.take().stages == ()


def test_an_engine_logs_shapes_and_the_rows_before():
    import numpy as np
    from fakes import FakeEngine, make_manifest
    from reflectrt.runtime.stream import Stream

    log = Log()
    stream = Stream(RecordingEngine(FakeEngine(), log), make_manifest(), 10)
    stream.feed_tokens([1, 2])
    stream.feed_tokens([3])
    runs = [run for run in log.take().graphs if run.name == "decoder"]
    assert [run.past for run in runs] == [0, 2]
    assert dict(runs[0].shapes)["embeddings"] == (1, 2, 4)
    assert np.isfinite([run.seconds for run in runs]).all()


def test_recording_costs_microseconds():
    assert seconds_per_span() < 1e-3
