from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from reflectrt.bench.reference import Medium, Reference, ReferenceAnswer
from reflectrt.bench.reference_inputs import normalise, prompt, text_positions, user_text, visual_positions
from reflectrt.runtime.errors import UsageError

QUESTION = "Which colour is the car behind the bus?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(checkpoint(folder, "grouped-7"))


def medium(kind: Any, grid: tuple[int, int, int], seed: int = 0) -> Medium:
    size = (grid[0], grid[1] * grid[2], 1176)
    return Medium(kind, np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8), grid)


IMAGE = medium("image", (1, 6, 10))
VIDEO = medium("video", (6, 4, 8))


# Against transformers' own generate()


def theirs(reference: Reference, images: list[Medium], text: str, count: int) -> tuple[list[int], torch.Tensor]:
    """Tokens and logits of transformers' greedy generate() on the prompt written out as one string."""
    tokens = reference.checkpoint.tokens
    counts = [image.patches.shape[1] // 4 for image in images]
    pads = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    whole = f"{system}<|im_start|>user\n{pads}{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([reference.ids(whole)])
    thinking = reference.checkpoint.reflection
    assert thinking is not None
    output = reference.model.generate(
        input_ids=ids,
        mm_token_type_ids=(ids == tokens.image_pad).int(),
        pixel_values=torch.cat([normalise(image.patches, reference.checkpoint.vision) for image in images]),
        image_grid_thw=torch.tensor([image.grid for image in images]),
        suppress_tokens=[thinking.begin_id, thinking.step_id, thinking.end_id],
        eos_token_id=list(tokens.stop),
        pad_token_id=tokens.stop[-1],
        max_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0, ids.shape[1] :].tolist(), torch.cat(output.logits)


@pytest.mark.parametrize("name", ["equal-heads", "grouped-3-tied", "grouped-7", "wide-head"])
def test_baseline_is_transformers_generate(folder: Path, name: str) -> None:
    reference = Reference(checkpoint(folder, name))
    images = [IMAGE, medium("image", (1, 4, 12), seed=1)]
    ours = reference.answer(images, QUESTION, steps=0, max_new_tokens=12)
    tokens, logits = theirs(reference, images, QUESTION, 12)
    assert list(ours.tokens) == tokens
    np.testing.assert_allclose(ours.logits, logits.numpy(), atol=1e-4)


def test_media_do_not_see_each_other_in_the_encoder(reference: Reference) -> None:
    other = medium("image", (1, 10, 4), seed=1)
    pixels = torch.cat([normalise(m.patches, reference.checkpoint.vision) for m in (IMAGE, other)])
    with torch.no_grad():
        both = reference.model.model.visual(pixels, grid_thw=torch.tensor([IMAGE.grid, other.grid])).pooler_output
    np.testing.assert_allclose(both[:15], reference.vision(IMAGE), atol=1e-5)
    np.testing.assert_allclose(both[15:], reference.vision(other), atol=1e-5)


# Reflection: the same by hand, without cache


def by_hand(reference: Reference, media: list[Medium], text: str, steps: int) -> tuple[list[Any], torch.Tensor]:
    """Hidden states after each reflection step, and logits after the answer's prefix, run by run."""
    head, model = reference.reflection_head, reference.model
    embed = model.get_input_embeddings()
    thinking = reference.checkpoint.reflection
    assert thinking is not None
    embeddings, places, start = [], [], 0
    for piece in prompt(media, text):
        if isinstance(piece, Medium):
            embeddings.append(torch.from_numpy(reference.vision(piece)))
            places.append(visual_positions(start, piece, reference.checkpoint.vision))
        else:
            embeddings.append(embed(torch.tensor(reference.ids(piece))))
            places.append(text_positions(start, len(embeddings[-1])))
        start = int(places[-1].max()) + 1
    prefix = torch.cat(places, dim=1)

    def last(rows: torch.Tensor) -> torch.Tensor:
        after = text_positions(start, len(rows) - prefix.shape[1])
        positions = torch.cat([prefix, after], dim=1)[:, None]
        output = model.model.language_model(inputs_embeds=rows[None], position_ids=positions, use_cache=False)
        return output.last_hidden_state[0, -1:]  # type: ignore[no-any-return]

    rows = torch.cat([*embeddings, embed(torch.tensor([thinking.begin_id]))])
    hidden, states = last(rows), []
    for _ in range(steps):
        rows = torch.cat([rows, head(hidden)])
        hidden = last(rows)
        states.append(hidden[0].numpy())
    closing = [thinking.end_id, *reference.ids("The answer is:")]
    return states, model.lm_head(last(torch.cat([rows, embed(torch.tensor(closing))])))[0]


@pytest.mark.parametrize("name", ["equal-heads", "linear-head", "mlp-head"])
@pytest.mark.parametrize("media", [[IMAGE], [VIDEO]], ids=["image", "video"])
def test_hidden_states_are_fed_back(folder: Path, name: str, media: list[Medium]) -> None:
    reference = Reference(checkpoint(folder, name))
    options = ["red", "blue", "green"]
    ours = reference.answer(media, QUESTION, options, steps=2)
    with torch.no_grad():
        text = user_text(QUESTION, options, video=media[0].kind == "video")
        states, logits = by_hand(reference, media, text, 2)
    np.testing.assert_allclose(ours.reflection, np.stack(states), atol=1e-4)
    np.testing.assert_allclose(ours.logits[0], logits.numpy(), atol=1e-4)


# What comes out


def special(reference: Reference) -> tuple[int, int, int]:
    found = reference.checkpoint.reflection
    assert found is not None
    return found.begin_id, found.step_id, found.end_id


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_multiple_choice_tokens(reference: Reference, steps: int) -> None:
    answer = reference.answer([VIDEO], QUESTION, ["red", "blue"], steps=steps)
    begin, step, end = special(reference)
    window = [begin, *[step] * steps, end] if steps else []
    assert answer.option is not None and answer.option_logits is not None
    letter = reference.ids(f"The answer is: {'AB'[answer.option]}")
    assert list(answer.tokens) == [*window, *letter]
    assert answer.reflection.shape == (steps, 448)
    assert answer.logits.shape == (1, 576)
    assert answer.option_logits.tolist() == [answer.logits[0, reference.ids(f" {x}")[0]] for x in "AB"]
    assert answer.text == f"The answer is: {'AB'[answer.option]}"


def test_steps_follow_the_medium_and_reflect(reference: Reference) -> None:
    options = ["red", "blue"]
    assert len(reference.answer([IMAGE], QUESTION, options).reflection) == 1
    assert len(reference.answer([IMAGE, VIDEO], QUESTION, options).reflection) == 4
    assert len(reference.answer([VIDEO], QUESTION, options, reflect="off").reflection) == 0


def free_text(reference: Reference, seed: int, **asked: Any) -> ReferenceAnswer:
    question = QUESTION[: 8 + 4 * seed]
    return reference.answer([medium("image", (1, 6, 10), seed)], question, max_new_tokens=16, **asked)


def test_free_text_windows(reference: Reference) -> None:
    begin, step, end = special(reference)
    opened_later = 0
    for seed in range(8):
        answer = free_text(reference, seed, steps=2)
        tokens = list(answer.tokens)
        windows = [i for i, token in enumerate(tokens[:-1]) if token == begin]
        assert all(tokens[i : i + 4] == [begin, step, step, end] for i in windows)
        assert len(answer.reflection) == 2 * len(windows)
        assert len(answer.logits) == len(tokens) - 3 * len(windows) <= 16  # `<BOR>` itself is chosen
        opened_later += sum(i > 0 for i in windows)
    assert opened_later  # or the loop above says nothing


def test_free_text_can_be_made_to_reflect_or_not(reference: Reference) -> None:
    begin, step, end = special(reference)
    for seed in range(4):
        always = free_text(reference, seed, steps=1, reflect="always")
        assert always.tokens[:3] == (begin, step, end)
        baseline = free_text(reference, seed, steps=1, reflect="off")
        assert not set(baseline.tokens) & {begin, step, end}
        assert baseline.reflection.shape == (0, 448)


def test_free_text_stops(reference: Reference) -> None:
    stop = reference.checkpoint.tokens.stop
    answers = [free_text(reference, seed, steps=0) for seed in range(8)]
    assert all(token not in stop for answer in answers for token in answer.tokens[:-1])
    assert {answer.tokens[-1] in stop for answer in answers} == {True, False}
    assert all(len(a.tokens) == 16 for a in answers if a.tokens[-1] not in stop)


def test_a_plain_checkpoint_answers_without_reflection(folder: Path) -> None:
    reference = Reference(checkpoint(folder, "plain"))
    assert reference.answer([IMAGE], QUESTION, ["red", "blue"]).reflection.shape == (0, 48)
    with pytest.raises(UsageError, match="no reflection tokens"):
        reference.answer([IMAGE], QUESTION, steps=1)


def test_the_question_as_the_authors_put_it() -> None:
    assert user_text("Why?", ["a", "b"], video=False) == (
        "Why?\nOptions:\nA. a\nB. b\nOutput the letter of the correct answer only."
    )
    assert user_text("Why?", ["a", "b"], video=True) == (
        "Why?\nA. a\nB. b\nAnswer with the option's letter from the given choices directly."
    )
    assert user_text("Why?", [], video=True) == "Why?"


# Positions


def installed(reference: Reference, media: list[Medium], after: int) -> torch.Tensor:
    """Positions [3, T] of 3 text tokens, then each medium and `after` text tokens, by transformers."""
    kinds = [0] * 3
    for m in media:
        kinds += [1 if m.kind == "image" else 2] * (m.grid[0] * m.grid[1] * m.grid[2] // 4) + [0] * after
    grids = {k: torch.tensor([m.grid for m in media if m.kind == k] or [[0, 0, 0]]) for k in ("image", "video")}
    types = torch.tensor([kinds])
    positions, _ = reference.model.model.get_rope_index(
        types, types, image_grid_thw=grids["image"], video_grid_thw=grids["video"]
    )
    return positions[:, 0]  # type: ignore[no-any-return]


def ours(reference: Reference, media: list[Medium], after: int) -> torch.Tensor:
    parts = [text_positions(0, 3)]
    for m in media:
        parts.append(visual_positions(int(parts[-1].max()) + 1, m, reference.checkpoint.vision))
        parts.append(text_positions(int(parts[-1].max()) + 1, after))
    return torch.cat(parts, dim=1)


def test_positions_of_images_are_those_of_the_installed_transformers(reference: Reference) -> None:
    media = [IMAGE, medium("image", (1, 12, 4)), medium("image", (1, 2, 2))]
    assert torch.equal(ours(reference, media, 2), installed(reference, media, 2))


def test_positions_of_a_video_shorter_than_wide_are_too(reference: Reference) -> None:
    media = [medium("video", (2, 4, 8))]  # times 0 and 2 of 4 columns
    assert torch.equal(ours(reference, media, 2), installed(reference, media, 2))


def test_after_a_long_video_text_goes_on_behind_its_last_frame(reference: Reference) -> None:
    """Where transformers 4.54 and 5.17 differ; `in_its_midst` fails when a later release has changed."""
    media = [medium("video", (6, 4, 8))]
    mine, in_its_midst = ours(reference, media, 2), installed(reference, media, 2)
    assert torch.equal(mine[:, :-2], in_its_midst[:, :-2])
    assert mine[:, -2].tolist() == [3 + 2 * 5 + 1] * 3  # `start` 3, 2 positions a temporal grid
    assert in_its_midst[:, -2].tolist() == [3 + 4] * 3  # 4 columns


def test_true_seconds_stretch_time(reference: Reference) -> None:
    video = medium("video", (4, 2, 2))
    slow = Medium("video", video.patches, video.grid, seconds_per_grid=0.75)
    assert visual_positions(5, slow, reference.checkpoint.vision)[0].tolist() == [5, 6, 8, 9]
