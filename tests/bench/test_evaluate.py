import json
from pathlib import Path

import pytest
from reflectrt.bench import evaluate as bench
from reflectrt.calibration.samples import read_samples
from reflectrt.cli import main
from reflectrt.runtime.errors import UsageError

DEMO = Path(__file__).parents[2] / "assets" / "demo"


def test_wilson_interval_agrees_with_worked_examples() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148.
    assert bench.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert bench.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert bench.wilson(0, 0) == (0.0, 1.0)


def prediction(id: str, given: str, label: str, category: str, error: str = "") -> bench.Prediction:
    return bench.Prediction(id, given, label, category, {}, 1.0, 6, error)


RUN = bench.Run("needle-image", "hash", "seed 1", 3, 4)


def test_accuracy_counts_by_category_and_unread_media_as_wrong() -> None:
    found = [
        prediction("a", "A", "A", "digit"),
        prediction("b", "B", "A", "digit"),
        prediction("c", "", "C", "shape", "c.png is damaged"),
    ]
    metrics = bench.summarise(found, RUN)
    assert (metrics["correct"], metrics["total"]) == (1, 3)
    assert metrics["by_category"]["digit"]["accuracy"] == 0.5
    assert metrics["by_category"]["shape"]["correct"] == 0
    assert metrics["unread"] == ["c: c.png is damaged"]


def test_a_killed_run_goes_on_without_the_line_that_was_cut_short(tmp_path: Path) -> None:
    assert bench.resume(tmp_path, RUN) == []
    whole = json.dumps(prediction("a", "A", "A", "digit").__dict__)
    (tmp_path / bench.PREDICTIONS).write_text(f"{whole}\n{whole[:20]}")
    assert [found.id for found in bench.resume(tmp_path, RUN)] == ["a"]
    assert (tmp_path / bench.PREDICTIONS).read_text() == f"{whole}\n"


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    bench.resume(tmp_path, RUN)
    with pytest.raises(UsageError, match="another run"):
        bench.resume(tmp_path, bench.Run("needle-image", "hash", "seed 2", 3, 4))


def test_a_broken_line_of_samples_is_named(tmp_path: Path) -> None:
    (tmp_path / bench.SAMPLES).write_text('{"media": ["a.png"], "question": "?"}\n')
    with pytest.raises(UsageError, match="line 1"):
        read_samples(tmp_path)


@pytest.mark.parametrize("task", ["needle-image", "needle-video"])
def test_questions_of_a_seed_and_of_the_files_they_left_get_the_same_answers(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["evaluate", task, str(DEMO), "--seed", "3", "--limit", "2", "--out", str(first), "--write-media"]) == 0
    assert main(["evaluate", "samples", str(DEMO), "--data", str(first), "--out", str(again), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["total"] == 2
    lines = [(folder / bench.PREDICTIONS).read_text().splitlines() for folder in (first, again)]
    scores = [[json.loads(line)["option_scores"] for line in found] for found in lines]
    assert scores[0] == scores[1]


def test_a_medium_that_cannot_be_read_is_a_wrong_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_text("not a video")
    line = {"media": ["broken.mp4"], "question": "What?", "options": ["a", "b"], "label": "A"}
    (tmp_path / bench.SAMPLES).write_text(json.dumps(line) + "\n")
    out = tmp_path / "out"
    assert main(["evaluate", "samples", str(DEMO), "--data", str(tmp_path), "--out", str(out), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["correct"], metrics["total"]) == (0, 1)
    assert "broken.mp4" in metrics["unread"][0]


def test_more_steps_than_the_context_holds_stop_the_run_instead_of_counting_as_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "needle-image", str(DEMO), "--limit", "1", "--out", str(tmp_path), "--steps", "1000000"]
    assert main(asked) == 1
    assert "pass --steps" in capsys.readouterr().err
    assert not (tmp_path / bench.METRICS).exists()


def test_a_foreign_line_among_the_predictions_is_named(tmp_path: Path) -> None:
    bench.resume(tmp_path, RUN)
    (tmp_path / bench.PREDICTIONS).write_text("garbage\n")
    with pytest.raises(UsageError, match=r"predictions.jsonl, line 1 is not a prediction"):
        bench.resume(tmp_path, RUN)


def test_a_folder_that_cannot_be_made_and_a_list_without_questions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be a folder"):
        bench.resume(tmp_path / "file", RUN)
    (tmp_path / bench.SAMPLES).touch()
    with pytest.raises(UsageError, match="has no questions"):
        read_samples(tmp_path)
