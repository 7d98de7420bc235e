import json
from pathlib import Path

import numpy as np
import pytest
from reflectrt.calibration.accuracy import compare, to_json, verification
from reflectrt.calibration.asking import DRIFT_STEPS, Asked, Side
from reflectrt.calibration.plot import write_plot
from reflectrt.calibration.render import render
from reflectrt.calibration.samples import Sample
from reflectrt.calibration.statistics import paired_difference

RANDOM = np.random.default_rng(0)
STATES = RANDOM.standard_normal((DRIFT_STEPS, 6)).astype(np.float32)
LOGITS = RANDOM.standard_normal(9).astype(np.float32)


def side(options: str, noise: float = 0.0, seconds: float = 1.0, size: int = 100) -> Side:
    growing = noise * np.arange(1, DRIFT_STEPS + 1)[:, None] * np.flip(STATES, axis=1)
    asked = tuple(Asked(option, (), seconds, STATES + growing, LOGITS + noise * LOGITS[::-1]) for option in options)
    return Side(asked, 10 * size, size, "int8" if noise else "fp32", "ab")


def samples(labels: str) -> list[Sample]:
    return [Sample(str(i), (Path("x.png"),), "?", ("a", "b"), label, "all") for i, label in enumerate(labels)]


def test_letters_are_counted_against_the_float_bundle_and_the_labels() -> None:
    report = compare(side("ABBA", 0.01), side("AABB"), samples("AABA"))
    assert (report.agreement.count, report.agreement.total) == (2, 4)
    assert report.flips == {"right to wrong": 1, "wrong to right": 1, "wrong to wrong": 0}
    assert report.accuracy.share == 0.75
    assert report.accuracy_change[0] == 0
    assert not report.passed()


def test_equal_bundles_pass_with_no_drift() -> None:
    report = compare(side("ABBA"), side("ABBA"), samples("ABBA"))
    assert report.passed()
    assert report.kl_mean == pytest.approx(0, abs=1e-12)
    assert [step.mean_cosine for step in report.drift] == pytest.approx([1.0] * DRIFT_STEPS)


@pytest.mark.parametrize(("flips", "passes"), [(1, True), (8, False)])
def test_a_bundle_fails_where_its_whole_interval_lies_below_the_limit(flips: int, passes: bool) -> None:
    report = compare(side("B" * flips + "A" * (100 - flips), 0.01), side("A" * 100), samples("A" * 100))
    assert report.passed() is passes


def test_drift_is_told_step_by_step() -> None:
    drift = compare(side("AB", 0.02), side("AB"), samples("AB")).drift
    assert [step.step for step in drift] == list(range(1, DRIFT_STEPS + 1))
    assert drift[0].mean_cosine > drift[-1].mean_cosine


def test_divergence_is_that_of_the_distributions() -> None:
    found, wanted = (np.exp(x) / np.exp(x).sum() for x in (LOGITS + 0.1 * LOGITS[::-1], LOGITS))
    report = compare(side("A", 0.1), side("A"), samples("A"))
    assert report.kl_mean == pytest.approx(float((wanted * np.log(wanted / found)).sum()), rel=1e-4)


def test_ratios_say_how_much_smaller_and_faster() -> None:
    report = compare(side("A", 0.01, seconds=0.5, size=25), side("A"), samples("A"))
    assert (report.ratios.size, report.ratios.memory, report.ratios.speed) == (0.25, 0.25, 2.0)


def test_questions_that_could_not_be_read_are_named_and_left_out() -> None:
    broken = Asked(None, (), 0.0, None, None, "x.png is damaged")
    quantized = side("AB", 0.01)
    quantized = Side((quantized.asked[0], broken), 1, 1, "int8", "ab")
    report = compare(quantized, side("AB"), samples("AB"))
    assert report.questions == 1
    assert report.unread == ("1: x.png is damaged",)


def test_a_report_is_text_json_figures_and_a_plot(tmp_path: Path) -> None:
    report = compare(side("ABBA", 0.01), side("ABBB"), samples("ABBA"))
    assert any("step 8" in line for line in render(report))
    assert json.loads(to_json(report))["agreement"]["share"] == 0.75
    figures = verification(report).figures
    assert figures["agreement_low"] < 0.75 < figures["agreement_high"]
    assert figures["cosine_step_8"] < 1
    write_plot(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_the_interval_of_a_paired_change() -> None:
    low, high = paired_difference(gained=4, lost=10, total=2000)
    assert low < -0.003 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(15) / 2000, rel=1e-2)
