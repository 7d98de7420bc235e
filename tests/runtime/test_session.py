import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Exports
from reflectrt.bench.synthetic import SyntheticMedia, random_medium
from reflectrt.runtime.bundle import Bundle, open_bundle
from reflectrt.runtime.engine import Array, Buffer
from reflectrt.runtime.engines.onnxruntime import OrtCpuEngine, OrtGraph
from reflectrt.runtime.errors import BundleError, LimitError, UsageError
from reflectrt.runtime.session import Model

OPTIONS = ("a bike", "a boat", "a plane", "a tram")
IMAGE = SyntheticMedia(random_medium("image", (1, 10, 14), seed=1))
VIDEO = SyntheticMedia(random_medium("video", (5, 8, 6), seed=2))


class CountingEngine(OrtCpuEngine):
    """Counts the runs of every graph, and the tokens that the decoder reads."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=1)
        self.runs: Counter[str] = Counter()
        self.tokens = 0

    def graph(self, name: str) -> "CountedGraph":  # type: ignore[override]
        return CountedGraph(self, name, super().graph(name))


class CountedGraph:
    def __init__(self, engine: CountingEngine, name: str, graph: OrtGraph) -> None:
        self.engine, self.name, self.counted = engine, name, graph

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.engine.runs[self.name] += 1
        if self.name == "decoder":
            self.engine.tokens += inputs["embeddings"].shape[1]
        self.counted.run(inputs, outputs)


class Unread(SyntheticMedia):
    """A medium that must not be read."""

    def patches(self, grids_per_chunk: int) -> Iterator[Array]:
        raise AssertionError(f"read {grids_per_chunk} grids before it was refused")


def of_grid(kind: str, grid: tuple[int, int, int]) -> Unread:
    return Unread(replace(random_medium(kind, (1, 2, 2), 0), grid=grid))


@pytest.fixture(scope="module")
def model(exports: Exports) -> Model:
    bundle = open_bundle(exports.bundle())
    return Model(bundle, CountingEngine(bundle))


@pytest.fixture
def counts(model: Model) -> CountingEngine:
    engine = model.engine
    assert isinstance(engine, CountingEngine)
    engine.runs.clear()
    engine.tokens = 0
    return engine


def with_context(model: Model, tokens: int) -> Model:
    """The same model with another `--max-context`."""
    manifest = replace(model.manifest, model=replace(model.manifest.model, max_context=tokens))
    return Model(replace(model.bundle, manifest=manifest), model.engine)


def question_tokens(model: Model, text: str, kind: str, options: tuple[str, ...] = OPTIONS) -> int:
    from reflectrt.runtime.prompt import Question

    return len(model._question_ids(Question(text, options), kind))  # type: ignore[arg-type]


def test_opening_reads_the_medium_once_and_asking_does_not(model: Model, counts: CountingEngine) -> None:
    session = model.open(VIDEO)
    assert counts.runs == {"vision": 1, "embed": 1, "decoder": 1}
    assert counts.tokens == len(model.manifest.prompt.opening) + 1 + VIDEO.visual_tokens
    counts.runs.clear()
    counts.tokens = 0
    for text in ("What comes first?", "And then?"):
        answer = session.ask(text, OPTIONS, steps=4)
        assert answer.forwards == 4 + 2
        assert counts.runs["decoder"] == 6
        assert counts.runs["vision"] == 0
        behind = question_tokens(model, text, "video") + 4 + 2 + len(model.manifest.prompt.answer_prefix)
        assert counts.tokens == len(model.manifest.prompt.visual_close) + behind
        counts.runs.clear()
        counts.tokens = 0


def test_a_question_is_rolled_back_before_the_next(model: Model) -> None:
    session = model.open(VIDEO)
    first = session.ask("What comes first?", OPTIONS)
    session.ask("A question of another length, in free text?", max_new_tokens=9)
    again = session.ask("What comes first?", OPTIONS)
    assert again.tokens == first.tokens
    assert again.option_scores == first.option_scores
    np.testing.assert_array_equal(again.reflection, first.reflection)


def test_a_session_of_its_own_gives_the_same_answer(model: Model) -> None:
    session = model.open(IMAGE)
    session.ask("First?", max_new_tokens=5)
    later, alone = session.ask("Second?", max_new_tokens=12), model.open(IMAGE).ask("Second?", max_new_tokens=12)
    assert (later.tokens, later.text) == (alone.tokens, alone.text)


def test_answers_depend_on_what_is_shown(model: Model) -> None:
    other = SyntheticMedia(random_medium("image", (1, 10, 14), seed=9))
    scores = [model.open(medium).ask("Which?", OPTIONS).option_scores for medium in (IMAGE, other)]
    assert scores[0] != scores[1]


def test_steps_default_to_the_checkpoint_s_for_the_kind_of_medium(model: Model) -> None:
    assert len(model.open(IMAGE).ask("Which?", OPTIONS).reflection) == 1
    assert len(model.open(VIDEO).ask("Which?", OPTIONS).reflection) == 4
    assert len(model.open(IMAGE, VIDEO).ask("Which?", OPTIONS).reflection) == 4


@pytest.mark.parametrize("how", [{"steps": 0}, {"reflect": "off"}, {"reflect": "off", "steps": 4}], ids=str)
def test_the_baseline_takes_two_runs_and_shows_no_reflection(model: Model, how: dict[str, Any]) -> None:
    answer = model.open(VIDEO).ask("Which?", OPTIONS, **how)
    assert (answer.forwards, answer.reflection.shape) == (2, (0, model.manifest.model.hidden))
    assert model.manifest.reflection is not None
    assert model.manifest.reflection.begin not in answer.tokens


def test_an_answer_says_what_was_chosen(model: Model) -> None:
    answer = model.open(IMAGE).ask("Which?", OPTIONS)
    assert answer.option_scores is not None
    assert list(answer.option_scores) == ["A", "B", "C", "D"]
    best = max(answer.option_scores, key=lambda name: (answer.option_scores or {})[name])
    assert (answer.option, answer.text) == (best, OPTIONS["ABCD".index(best)])
    assert sum(answer.option_scores.values()) == pytest.approx(1)
    assert answer.reflection.dtype == np.float32


def test_text_comes_in_pieces_that_make_the_whole(model: Model) -> None:
    pieces: list[str] = []
    answer = model.open(IMAGE).ask("Describe.", on_text=pieces.append, max_new_tokens=24)
    assert "".join(pieces).strip() == answer.text
    assert len(pieces) > 1
    assert answer.option is None
    assert answer.option_scores is None


def test_the_first_question_is_charged_with_the_reading(model: Model) -> None:
    session = model.open(VIDEO)
    first, second = session.ask("One?", OPTIONS).timings, session.ask("Two?", OPTIONS).timings
    assert set(first) == {"read", "vision", "prefill", "reflect", "decode", "total"}
    assert min(first["read"], first["vision"]) > 0
    assert second["read"] == second["vision"] == 0


def test_a_long_video_is_encoded_in_chunks_with_the_same_result(model: Model, counts: CountingEngine) -> None:
    whole = model.open(VIDEO).ask("Which?", OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "vision_patches", 2 * 8 * 6)
        counts.runs.clear()
        chunked = model.open(VIDEO).ask("Which?", OPTIONS)
    assert counts.runs["vision"] == 3
    assert chunked.tokens == whole.tokens
    np.testing.assert_allclose(chunked.reflection, whole.reflection, atol=1e-4)


def test_progress_ends_at_all_visual_tokens(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    model.open(IMAGE, VIDEO, progress=lambda done, total: seen.append((done, total)))
    total = IMAGE.visual_tokens + VIDEO.visual_tokens
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_report_says_what_was_read(model: Model) -> None:
    image, video = model.open(IMAGE, VIDEO).media
    assert (image.kind, image.frames, image.grid, image.visual_tokens) == ("image", 1, (1, 10, 14), 35)
    assert (video.kind, video.frames, video.grid, video.visual_tokens) == ("video", 10, (5, 8, 6), 60)


# The context


@pytest.mark.parametrize("count", [1, 3])
def test_images_too_large_are_refused_unread_with_pixels_that_fit(model: Model, count: int) -> None:
    small = with_context(model, 1000)
    media = [of_grid("image", (1, 60, 80)) for _ in range(count)]
    with pytest.raises(LimitError) as caught:
        small.open(*media, reserve_tokens=100)
    message = str(caught.value)
    prompt = len(model.manifest.prompt.opening) + 2 * count
    assert f"{prompt + 1200 * count + 100} tokens" in message
    assert "the context holds 1000" in message
    pixels = int(re.search(r"--max-pixels (\d+)", message).group(1))  # type: ignore[union-attr]
    tokens = pixels // 784
    fitting = [SyntheticMedia(random_medium("image", (1, 2, 2 * tokens), seed=3)) for _ in range(count)]
    small.open(*fitting, reserve_tokens=100)
    one_more = [of_grid("image", (1, 2, 2 * (tokens + 1))) for _ in range(count)]
    with pytest.raises(LimitError):
        small.open(*one_more, reserve_tokens=100)


@pytest.mark.parametrize("count", [1, 2])
def test_videos_too_long_are_refused_unread_with_frames_that_fit(model: Model, count: int) -> None:
    small = with_context(model, 1500)
    with pytest.raises(LimitError) as caught:
        small.open(*(of_grid("video", (200, 8, 16)) for _ in range(count)), reserve_tokens=100)
    found = re.search(r"--max-frames (\d+) --max-pixels (\d+)", str(caught.value))
    assert found is not None
    frames, pixels = map(int, found.groups())
    assert pixels == 32 * 784
    fitting = [SyntheticMedia(random_medium("video", (frames // 2, 8, 16), seed=3)) for _ in range(count)]
    small.open(*fitting, reserve_tokens=100)
    with pytest.raises(LimitError):
        small.open(*(of_grid("video", (frames // 2 + 1, 8, 16)) for _ in range(count)), reserve_tokens=100)


def test_a_video_of_which_no_grid_fits_is_refused_with_pixels_that_fit(model: Model) -> None:
    small = with_context(model, 400)
    with pytest.raises(LimitError) as caught:
        small.open(of_grid("video", (20, 40, 60)), reserve_tokens=100)
    found = re.search(r"--max-frames 2 --max-pixels (\d+)", str(caught.value))
    assert found is not None
    tokens = int(found.group(1)) // 784
    small.open(SyntheticMedia(random_medium("video", (1, 2, 2 * tokens), seed=3)), reserve_tokens=100)


@pytest.mark.parametrize(
    "medium", [of_grid("image", (1, 60, 80)), of_grid("video", (20, 40, 60))], ids=["image", "video"]
)
def test_where_no_setting_helps_none_is_named(model: Model, medium: Unread) -> None:
    with pytest.raises(LimitError, match="--max-context") as caught:
        with_context(model, 400).open(medium, reserve_tokens=398)
    assert "--max-frames" not in str(caught.value)
    assert "--max-pixels" not in str(caught.value)


def test_a_medium_that_just_fits_is_taken(model: Model) -> None:
    prefix = len(model.manifest.prompt.opening) + 2 + IMAGE.visual_tokens
    with_context(model, prefix + 50).open(IMAGE, reserve_tokens=50)
    with pytest.raises(LimitError):
        with_context(model, prefix + 49).open(IMAGE, reserve_tokens=50)


def test_a_question_that_does_not_fit_behind_the_medium_is_refused(model: Model, counts: CountingEngine) -> None:
    prefix = len(model.manifest.prompt.opening) + 2 + IMAGE.visual_tokens
    session = with_context(model, prefix + 60).open(IMAGE, reserve_tokens=50)
    counts.runs.clear()
    with pytest.raises(LimitError, match=rf"the context holds {prefix + 60}.*--max-new-tokens"):
        session.ask("Describe.", max_new_tokens=100)
    assert not counts.runs
    assert session.ask("Why?", max_new_tokens=5).tokens


# Wrong requests


def test_an_unknown_option_is_named_with_the_right_ones(model: Model) -> None:
    with pytest.raises(UsageError, match=r"unknown option 'fsp'; choose from fps, max_frames, max_pixels"):
        model.open(IMAGE, fsp=2)
    with pytest.raises(UsageError, match=r"unknown option 'step'; choose from steps, reflect"):
        model.open(IMAGE).ask("Which?", OPTIONS, step=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"reflect": "maybe"}, "reflect is 'maybe'"),
    ],
)
def test_senseless_options_are_named(model: Model, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.open(IMAGE).ask("Which?", **how)


def test_opening_nothing_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="no medium"):
        model.open()


def test_an_empty_question_is_refused_and_the_session_stays_usable(model: Model) -> None:
    session = model.open(IMAGE)
    with pytest.raises(UsageError, match="question is empty"):
        session.ask(" ")
    assert session.ask("Which?", OPTIONS).option


def test_special_tokens_in_a_question_are_plain_text(model: Model) -> None:
    special = model.tokenizer.encode("<BOR><|im_end|><|vision_start|>")
    assert model.manifest.reflection is not None
    assert not {model.manifest.reflection.begin, *model.manifest.prompt.stop} & set(special)
    answer = model.open(IMAGE).ask("Say <|im_end|> and <BOR>.", OPTIONS)
    assert answer.forwards == 3


# Bundles


def test_a_plain_qwen_answers_without_reflection(exports: Exports) -> None:
    bundle = open_bundle(exports.bundle("plain"))
    model = Model(bundle, OrtCpuEngine(bundle, threads=1))
    answer = model.open(VIDEO).ask("Which?", OPTIONS, steps=4)
    assert (answer.forwards, len(answer.reflection)) == (2, 0)
    assert model.open(IMAGE).ask("What?", reflect="always", max_new_tokens=4).forwards <= 4


@pytest.mark.parametrize("damage", ["swapped", "no graph"])
def test_a_graph_that_is_not_the_manifest_s_is_refused(exports: Exports, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(exports.bundle(), tmp_path / "bundle")
    bundle = open_bundle(folder)
    content = (folder / "head.onnx").read_bytes() if damage == "swapped" else b"not a graph"
    (folder / "embed.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"embed.*export the bundle again"):
        OrtCpuEngine(bundle, threads=1)


def test_a_tokenizer_that_is_none_is_refused(exports: Exports, tmp_path: Path) -> None:
    folder = shutil.copytree(exports.bundle(), tmp_path / "bundle")
    bundle = open_bundle(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"):
        Model(bundle, OrtCpuEngine(bundle, threads=1))


def test_a_tokenizer_larger_than_the_embedding_is_refused(model: Model) -> None:
    small = replace(model.manifest, model=replace(model.manifest.model, vocab=model.tokenizer.size - 1))
    with pytest.raises(BundleError, match="tokenizer"):
        Model(replace(model.bundle, manifest=small), model.engine)


def test_buffers_are_views_of_one_memory(model: Model) -> None:
    whole: Buffer = model.engine.empty((1, 4, 3))
    row = whole.view((1, 1, 3), 2 * 3)
    assert row.shape == (1, 1, 3)
    np.testing.assert_array_equal(model.engine.download(row)[0, 0], model.engine.download(whole)[0, 2])


def test_options_whose_letters_share_a_token_are_refused(exports: Exports) -> None:
    bundle = open_bundle(exports.bundle())
    letters = bundle.manifest.prompt.letters
    prompt = replace(bundle.manifest.prompt, letters=(*letters[:5], letters[4], *letters[6:]))
    model = Model(replace(bundle, manifest=replace(bundle.manifest, prompt=prompt)), OrtCpuEngine(bundle))
    session = model.open(SyntheticMedia(random_medium("image", (1, 4, 4), 0)))
    assert session.ask("Which?", ["a"] * 5).option in "ABCDE"
    with pytest.raises(UsageError, match="only 5 letters"):
        session.ask("Which?", ["a"] * 6)
