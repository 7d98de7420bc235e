"""Training batches: scenes of one size, several questions to a scene, everything a loss needs beside the pixels.

Batch `n` of a seed is always the same, whichever worker draws it, so training resumes exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from ..bench.needle.backgrounds import Split
from ..bench.needle.film import VideoScene, video_scene
from ..bench.needle.film_questions import video_questions
from ..bench.needle.item import LETTERS, Question
from ..bench.needle.picture import ImageScene, image_scene
from ..bench.needle.picture_questions import image_questions
from .dense import CELL, image_labels, video_labels
from .drill import drill_row
from .prompt import IMAGE, Kind, asked, question_text, replied
from .row import IGNORED, Row, token_id
from .zoomed import place_row, zoomed_crop, zoomed_row

CROP = 56  # px: the re-encoded crop is CROP x CROP, 2 x 2 merged tokens
REFLECTION = 4  # <VR> slots in training, the crop's merged tokens

Turn = Literal["answer", "place", "zoomed"]
ANSWER: Turn = "answer"
PLACE: Turn = "place"  # zooming's first pass: the reply is a box or a span
ZOOMED: Turn = "zoomed"  # its second: the crop stands before the question


@dataclass(frozen=True)
class Plan:
    """What the batches of one phase hold; `sizes` are (width, height) in px, `counts` frames of a video.

    open_share of the questions come without options and want the answer's words. hint_share of them tell the
    answer in the question, which teaches to find the letter of a known answer. drill_share of them are drills.
    """

    kind: Kind
    sizes: tuple[tuple[int, int], ...]
    scenes: int
    questions: int
    counts: tuple[int, ...] = (1,)
    cells: tuple[int, int] = (2, 6)
    open_share: float = 0.0
    hint_share: float = 0.0
    drill_share: float = 0.0
    reflection: int = 0
    turn: Turn = ANSWER
    split: Split = "train"
    pixel_budget: int = 0  # px of all frames of a batch; caps `scenes` where not 0

    def batches(self, tokenizer: Tokenizer, seed: int, first: int, count: int) -> Dataset["Batch"]:
        """Batches `first` to `first + count` of a seed."""
        return Batches(self, tokenizer, seed, first, count)


@dataclass(frozen=True)
class Batch:
    """One kind, one size. B scenes, F frames, Q questions, T branch tokens.

    pixels uint8 [B, F, H, W, 3]; ids, labels int64 [B, Q, T] (labels IGNORED where nothing is learnt);
    crops uint8 [B * Q, 1, CROP, CROP, 3] (zoomed: of zooming's size; records: of any);
    dense uint8 [B, grid, rows, columns, HEADS];
    slots, colon int64 [B, Q]: index of the first <VR> and of the answer prefix's last token; answer [B, Q] (0..3);
    word: the answer's last token [B, Q], IGNORED in drills;
    category: names [B][Q].
    """

    kind: Kind
    pixels: Tensor
    ids: Tensor
    labels: Tensor
    crops: Tensor
    dense: Tensor
    slots: Tensor
    colon: Tensor
    answer: Tensor
    word: Tensor
    category: list[list[str]]
    turn: Turn = ANSWER


class Batches(Dataset[Batch]):
    """The batches of a plan by number."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, seed: int, first: int, count: int) -> None:
        self.plan, self.tokenizer, self.seed, self.first, self.count = plan, tokenizer, seed, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        return make_batch(
            self.plan, self.tokenizer, Random(f"batch/{self.plan.kind}/{self.seed}/{self.first + number}")
        )


def make_batch(plan: Plan, tokenizer: Tokenizer, random: Random) -> Batch:
    """Draw a batch."""
    size, count = random.choice(plan.sizes), random.choice(plan.counts)
    scenes = plan.scenes
    if plan.pixel_budget:
        scenes = max(1, min(scenes, plan.pixel_budget // (size[0] * size[1] * count)))
    drawn = [_scene(random, plan, size, count) for _ in range(scenes)]
    asks = [question for _, questions, _, _ in drawn for question in questions]
    crops = [crop for _, _, crops, _ in drawn for crop in crops]
    rows = [_row(tokenizer, ask, plan, random, crop) for ask, crop in zip(asks, crops, strict=True)]
    length = -(-max(len(row.ids) for row in rows) // 16) * 16

    def table(lists: Iterable[list[int]], fill: int) -> Tensor:
        return torch.tensor([numbers + [fill] * (length - len(numbers)) for numbers in lists]).view(scenes, -1, length)

    numbers = torch.tensor(
        [[row.slot, row.colon, LETTERS.index(ask.label), row.word] for row, ask in zip(rows, asks, strict=True)]
    )
    slots, colon, answer, word = numbers.view(scenes, -1, 4).unbind(-1)
    return Batch(
        plan.kind,
        torch.from_numpy(np.stack([pixels for pixels, _, _, _ in drawn])),
        table((row.ids for row in rows), token_id(tokenizer, "<|endoftext|>")),
        table((row.labels for row in rows), IGNORED),
        torch.from_numpy(np.stack(crops)),
        torch.from_numpy(np.stack([labels for _, _, _, labels in drawn])),
        slots, colon, answer, word,
        [[ask.category for ask in questions] for _, questions, _, _ in drawn], plan.turn,
    )  # fmt: skip


Drawn = tuple[NDArray[np.uint8], list[Question], list[NDArray[np.uint8]], NDArray[np.uint8]]


def _scene(random: Random, plan: Plan, size: tuple[int, int], count: int) -> Drawn:
    """Pixels [F, H, W, 3], exactly `plan.questions` questions, their crops and the dense labels."""
    while True:
        scene: ImageScene | VideoScene
        if plan.kind == IMAGE:
            scene = image_scene(random, plan.split, size, plan.cells)
            questions, labels = image_questions(random, scene, plan.questions), image_labels(scene)
        else:
            scene = video_scene(random, plan.split, size, count)
            questions, labels = video_questions(random, scene, plan.questions), video_labels(scene)
        if len(questions) == plan.questions:
            break
    pixels = scene.pixels()[None] if isinstance(scene, ImageScene) else np.stack(list(scene.frames()))
    if plan.turn == ZOOMED:
        return pixels, questions, [zoomed_crop(pixels, question, random) for question in questions], labels
    return pixels, questions, [crop_around(pixels, question) for question in questions], labels


def crop_around(pixels: NDArray[np.uint8], question: Question) -> NDArray[np.uint8]:
    """The needle at the resolution it has, from the middle of its span: uint8 [1, CROP, CROP, 3].

    Cut where visual tokens meet, so that the crop's tokens show what four of the whole picture's do.
    """
    frame: NDArray[np.uint8] = pixels[sum(question.span or (0, 0)) // 2]
    left, top = (
        min(max(round((question.box[axis] + question.box[axis + 2] - CROP) / 2 / CELL) * CELL, 0),
            frame.shape[1 - axis] - CROP)
        for axis in (0, 1)
    )  # fmt: skip
    return frame[None, top : top + CROP, left : left + CROP]


def _row(tokenizer: Tokenizer, ask: Question, plan: Plan, random: Random, crop: NDArray[np.uint8]) -> Row:
    """Branch ids, labels, index of the first <VR> and of the token before the answer."""
    if plan.turn == PLACE:
        return place_row(tokenizer, ask)
    if plan.turn == ZOOMED:
        return zoomed_row(tokenizer, ask, plan.kind, crop)
    draw = random.random()
    if draw >= 1 - plan.drill_share:
        return drill_row(tokenizer, random, plan.kind)
    bare = draw < plan.open_share
    hinted = plan.open_share <= draw < plan.open_share + plan.hint_share
    asking = f"{ask.text} {ask.answer}" if hinted else ask.text
    text = question_text(asking, () if bare else ask.options, plan.kind)
    question = tokenizer.encode(asked(text)).ids
    reply = tokenizer.encode(replied(ask.answer if bare else ask.label, plan.reflection)).ids
    skipped = token_id(tokenizer, "<VR>")
    labels = [IGNORED] * len(question) + [IGNORED if token == skipped else token for token in reply]
    colon = len(question) + (plan.reflection + 2 if plan.reflection else 0) + 3  # "The answer is:" is 4 tokens
    word = tokenizer.encode(f" {ask.answer}").ids[-1]  # a digit's first token is its space
    return Row(question + reply, labels, len(question) + 1, colon, word)
