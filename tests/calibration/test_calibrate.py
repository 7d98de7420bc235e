import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exports import Exports, Silence
from reflectrt.bench.outlier_twin import make_twin
from reflectrt.calibration import calibrate
from reflectrt.calibration.accuracy import Report, compare
from reflectrt.calibration.asking import Asked, Asking, Side, ask_all, ask_apart
from reflectrt.calibration.calibrate import Seen, Settings, make_recipe, observe
from reflectrt.calibration.samples import Sample, gather_samples, read_lines
from reflectrt.cli import main
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.recipe import Recipe, read_recipe
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.contract import DECODER

INT8 = Settings("int8", "minmax", "auto")


class Quiet(Silence):
    def samples(self, done: int, total: int) -> None:
        pass


class Killed(Quiet):
    """Ends a run after some samples, as a kill would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def samples(self, done: int, total: int) -> None:
        if done == min(self.after, total):
            raise KeyboardInterrupt


def recipe_of(checkpoint: Path, samples: list[Sample], settings: Settings, work: Path) -> Recipe:
    opened = Checkpoint.open(checkpoint)
    return make_recipe(opened, samples, settings, observe(opened, samples, settings, work, Quiet()))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder that keeps the small checkpoint's float bundle from test to test."""
    return tmp_path_factory.mktemp("work")


def test_the_three_inputs_of_the_decoder_are_all_seen(exports: Exports, pictures: Path, work: Path) -> None:
    samples = read_lines(pictures)
    recipe = recipe_of(exports.checkpoint(), samples, INT8, work)
    assert recipe.origin is not None
    assert recipe.origin.seen["decoder from hidden"] == len(samples)  # one reflection step for a picture
    assert recipe.origin.seen["decoder from visual"] == len(samples) * 12
    assert recipe.origin.seen["decoder from text"] > len(samples)
    assert recipe.origin.seen["head from hidden"] == len(samples)


def test_every_linear_gets_a_finite_range_and_kept_ones_none(exports: Exports, pictures: Path, work: Path) -> None:
    settings = replace(INT8, keep=("*.o_proj", "lm_head"))
    recipe = recipe_of(exports.checkpoint(), read_lines(pictures), settings, work)
    decoder = recipe.graph(DECODER).linears
    assert len(decoder) == 2 * 6
    assert not any("o_proj" in name for name in decoder)
    assert recipe.graph("head").linears == {}
    assert all(linear.input_scale for linear in decoder.values())


def test_layers_may_keep_8_bits_of_weight(exports: Exports, pictures: Path, work: Path) -> None:
    settings = Settings("int4", "minmax", None, eight_bit_weights=("*_attn.*", "lm_head", "*.embed_tokens"))
    recipe = recipe_of(exports.checkpoint(), read_lines(pictures), settings, work)
    schemes = {name: linear.scheme for graph in recipe.graphs.values() for name, linear in graph.linears.items()}
    eight = {name for name, scheme in schemes.items() if scheme == "int8-weights"}
    assert eight == {name for name in schemes if "_attn." in name or "lm_head" in name or "embed_tokens" in name}
    assert set(schemes.values()) == {"int8-weights", "int4-weights"}


def test_readers_of_one_tensor_share_their_scale(exports: Exports, pictures: Path, work: Path) -> None:
    decoder = recipe_of(exports.checkpoint(), read_lines(pictures), INT8, work).graph(DECODER).linears
    scales = {decoder[f"model.language_model.layers.1.self_attn.{name}_proj.weight"].input_scale for name in "qkv"}
    assert len(scales) == 1


def test_a_run_that_was_killed_goes_on(
    exports: Exports, pictures: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, samples = Checkpoint.open(exports.checkpoint()), read_lines(pictures)
    (work / "seen.npz").unlink(missing_ok=True)
    whole = observe(checkpoint, samples, INT8, work, Quiet())
    (work / "seen.npz").unlink()
    monkeypatch.setattr(calibrate, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        observe(checkpoint, samples, INT8, work, Killed(after=6))
    asked: list[str] = []
    monkeypatch.setattr(calibrate, "_ask", _noting(calibrate._ask, asked))
    resumed = observe(checkpoint, samples, INT8, work, Quiet())
    assert asked == [sample.id for sample in samples[6:]]
    assert resumed.observations.seen() == whole.observations.seen()
    for name, largest in whole.maxima().items():
        np.testing.assert_allclose(resumed.maxima()[name], largest, rtol=1e-6)


def _noting(ask, asked: list[str]):  # type: ignore[no-untyped-def]
    def noting(model, sample, settings):  # type: ignore[no-untyped-def]
        asked.append(sample.id)
        ask(model, sample, settings)

    return noting


def test_ranges_that_are_not_finite_are_refused(exports: Exports, pictures: Path, work: Path) -> None:
    samples = read_lines(pictures)
    seen = observe(Checkpoint.open(exports.checkpoint()), samples, INT8, work, Quiet())
    name = next(iter(seen.observations.maxima))
    broken = replace_maximum(seen, name, np.inf)
    with pytest.raises(Exception, match=r"the range of .* is inf") as caught:
        make_recipe(Checkpoint.open(exports.checkpoint()), samples, replace(INT8, smooth=None), broken)
    assert type(caught.value).__name__ == "NumericError"


def replace_maximum(seen: Seen, name: str, value: float) -> Seen:
    maxima = dict(seen.observations.maxima)
    maxima[name] = np.full_like(maxima[name], value)
    return replace(seen, observations=replace(seen.observations, maxima=maxima))


def report(checkpoint: Path, plain: Path, recipe: Recipe, samples: list[Sample], folder: Path) -> Report:
    """What a recipe costs against the float bundle `plain`."""
    plan = ExportPlan(precision=recipe.precision, recipe=recipe)
    export_bundle(Checkpoint.open(checkpoint), folder, plan, Quiet())
    sides = [Side(tuple(ask_all(b, samples, Asking())), 1, 1, recipe.precision, "") for b in (folder, plain)]
    return compare(sides[0], sides[1], samples)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_calibrated_bundle_stays_near_the_float_one(
    exports: Exports, pictures: Path, work: Path, tmp_path: Path, precision: str
) -> None:
    samples = read_lines(pictures)
    settings = replace(INT8, precision=precision)  # type: ignore[arg-type]
    recipe = recipe_of(exports.checkpoint(), samples, settings, work)
    found = report(exports.checkpoint(), exports.bundle(), recipe, samples, tmp_path / "bundle")
    # Later steps of a random checkpoint are no measure: it is chaotic, and any difference grows from step to step.
    assert found.drift[0].mean_cosine > 0.96
    assert found.kl_mean is not None
    assert 0 < found.kl_mean < 0.1


@pytest.fixture(scope="module")
def twin(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_twin(exports.checkpoint(), tmp_path_factory.mktemp("twin") / "checkpoint")


@pytest.mark.slow
def test_the_outlier_twin_is_the_same_function_with_other_channels(
    exports: Exports, pictures: Path, twin: Path, tmp_path: Path, work: Path
) -> None:
    samples = read_lines(pictures)
    settings = replace(INT8, smooth=None)
    seen = observe(Checkpoint.open(twin), samples, settings, tmp_path / "work", Quiet())
    plain = observe(Checkpoint.open(exports.checkpoint()), samples, settings, work, Quiet())
    for name, largest in seen.maxima().items():
        if ".layers." in name and "o_proj" not in name:
            assert largest.max() / np.median(largest) > 50
            assert largest.max() > 30 * plain.maxima()[name].max()
    answers = [list(ask_all(bundle, samples, Asking())) for bundle in (tmp_path / "work" / "float", exports.bundle())]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.option == theirs.option
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)


@pytest.mark.slow
def test_smoothing_saves_the_outlier_twin_and_plain_minmax_does_not(pictures: Path, twin: Path, tmp_path: Path) -> None:
    samples, work = read_lines(pictures), tmp_path / "work"
    cosine = {}
    for smooth in ("auto", None):
        recipe = recipe_of(twin, samples, replace(INT8, smooth=smooth), work)
        found = report(twin, work / "float", recipe, samples, tmp_path / f"bundle-{smooth}")
        cosine[smooth] = found.drift[0].mean_cosine
    assert cosine["auto"] > 0.96
    assert cosine[None] < 0.8


@pytest.mark.slow
def test_the_outlier_twin_of_the_reference_keeps_its_answers_when_smoothed(pictures: Path, tmp_path: Path) -> None:
    reference = Path(__file__).parents[2] / "assets" / "reference"
    checkpoint = make_twin(reference, tmp_path / "twin")
    samples, work = read_lines(pictures), tmp_path / "work"
    found = {}
    for smooth in ("auto", None):
        recipe = recipe_of(checkpoint, samples, replace(INT8, smooth=smooth), work)
        found[smooth] = report(checkpoint, work / "float", recipe, samples, tmp_path / f"bundle-{smooth}")
    assert min(step.mean_cosine for step in found["auto"].drift) > 0.99
    assert found["auto"].agreement.count >= 9
    assert max(step.mean_cosine for step in found[None].drift) < 0.8


def test_a_process_of_its_own_gives_the_same_answers(exports: Exports, pictures: Path) -> None:
    samples = read_lines(pictures)[:2]
    counted: list[int] = []
    side = ask_apart(exports.bundle(), samples, Asking(), lambda done, _: counted.append(done))
    here = list(ask_all(exports.bundle(), samples, Asking()))
    assert [asked.tokens for asked in side.asked] == [asked.tokens for asked in here]
    assert isinstance(side.asked[0], Asked)
    assert counted == [1, 2]
    assert side.peak_bytes > 50e6


@pytest.mark.slow
def test_the_commands_from_samples_to_a_bundle_that_carries_its_report(
    exports: Exports, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, recipe, bundle = str(exports.checkpoint()), str(tmp_path / "recipe.json"), str(tmp_path / "bundle")
    assert main(["calibrate", checkpoint, str(pictures), recipe, "--precision", "int8"]) == 0
    assert not (tmp_path / "recipe.json.work").exists()
    assert main(["export", checkpoint, bundle, "--recipe", recipe]) == 0
    capfd.readouterr()
    plain = str(exports.bundle())
    plot = tmp_path / "report.svg"
    status = main(["verify", bundle, "--against", plain, "--samples", str(pictures), "--plot", str(plot), "--json"])
    found = json.loads(capfd.readouterr().out)
    assert status == (0 if found["passed"] else 1)
    assert found["questions"] == 10
    assert plot.stat().st_size > 1000
    record = open_bundle(bundle).manifest.verification
    assert record is not None
    assert record.figures["agreement"] == found["agreement"]["share"]
    assert read_recipe(Path(recipe)).checkpoint == Checkpoint.open(checkpoint).fingerprint()


def refused(capfd: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == status
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    return line


def test_what_cannot_be_calibrated_is_one_line(
    exports: Exports, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(samples: Path, *more: str, status: int = 2) -> str:
        how = ["--precision", "int8", *more]
        return refused(capfd, status, "calibrate", exports.checkpoint(), samples, tmp_path / "r.json", *how)

    assert "matches no layer" in fails(pictures, "--keep", "*.w_proj")
    assert "--eight-bit-weights *.w_proj matches no layer" in fails(pictures, "--eight-bit-weights", "*.w_proj")
    assert "int4 rounds no activations" in fails(pictures, "--precision", "int4", "--smooth", "auto")
    assert "7 samples are too few" in fails(pictures, "--limit", "7")
    assert "none.jsonl is not there" in fails(tmp_path / "none.jsonl")
    (pictures.parent / "3.png").write_bytes(b"not a picture")
    assert "3.png" in fails(pictures, status=1)
    (pictures.parent / "4.png").unlink()
    assert "4.png" in fails(pictures)
    assert not (tmp_path / "r.json").exists()


def test_a_folder_of_media_is_calibrated_on_in_free_text(exports: Exports, pictures: Path, work: Path) -> None:
    pictures.unlink()
    samples = gather_samples(pictures.parent)
    recipe = recipe_of(exports.checkpoint(), samples, INT8, work)
    assert recipe.origin is not None
    assert recipe.origin.seen["decoder from hidden"] >= len(samples)
