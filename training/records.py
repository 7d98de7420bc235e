"""Real questions as training batches: Visual-CoT's records (images, boxes) and the authors' (videos, spans).

One question a batch, media at their own size. A line of the file is one record:

    {"image": "a.jpg", "dataset": "gqa", "question": "...", "answer": "...", "bboxs": [[left, top, right, bottom], ...]}
    {"video": "a.mp4", "question": "...", "answer": "...", "temporal_span": [from, to]}

Boxes are px of the file, spans seconds. Visual-CoT (arXiv 2403.16999) keeps its images in a folder for each `dataset`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from ..runtime.media import ImageBudget, Media, MediaLimits, PatchLayout, VideoBudget, open_media, smart_resize
from ..runtime.media.image import read_rgb
from ..runtime.media.patches import resize
from .dense import CELL, HEADS
from .prompt import IMAGE, VIDEO, Kind, asked, question_text, replied
from .row import IGNORED, token_id
from .scenes import Batch

CROP_TOKENS = (16, 128)  # fewest and most of a re-encoded crop, as the paper trains
CROP_BUDGET = tuple(tokens * CELL**2 for tokens in CROP_TOKENS)
CLUE_FRAMES = 2  # one temporal grid row of the span

Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Record:
    """A question with its medium and where the answer is: a box of an image, or a span of a video."""

    medium: Path
    kind: Kind
    question: str
    answer: str
    box: Box | None
    span_s: tuple[float, float] | None


def read_records(file: Path, media: Path) -> list[Record]:
    """All records of a JSON-lines file, media under `media`. ValueError names a line that is not one."""
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(_record(json.loads(line), media))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{file}, line {number} is not a record of an image or video: {error!r}") from None
    if not records:
        raise ValueError(f"{file} holds no record")
    return records


def _record(fields: dict[str, Any], media: Path) -> Record:
    text = str(fields["question"]), str(fields["answer"])
    if "video" in fields:
        low, high = (float(second) for second in fields["temporal_span"])
        if not 0 <= low < high:
            raise ValueError(f"the span {low} to {high} s is empty")
        return Record(media / fields["video"], VIDEO, *text, None, (low, high))
    corners = np.array(fields["bboxs"], dtype=float).reshape(-1, 4)
    left, top = (float(edge) for edge in corners[:, :2].min(0))
    right, bottom = (float(edge) for edge in corners[:, 2:].max(0))
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(f"the box {left}, {top}, {right}, {bottom} is empty")
    place = media / fields.get("dataset", "") / fields["image"]
    return Record(place, IMAGE, *text, (left, top, right, bottom), None)


@dataclass(frozen=True)
class RecordPlan:
    """Records of one kind, drawn at random. `reflection` False: no reflection block, for the plain baseline."""

    records: tuple[Record, ...]
    reflection: bool = True
    max_pixels: int = 4096 * CELL**2  # of an image
    max_frames: int = 64
    frame_pixels: int = 64 * CELL**2

    def batches(self, tokenizer: Tokenizer, seed: int, first: int, count: int) -> Dataset[Batch]:
        """Batches `first` to `first + count` of a seed."""
        return RecordBatches(self, tokenizer, seed, first, count)


@dataclass(frozen=True)
class RecordBatches(Dataset[Batch]):
    """The batches of a plan by number."""

    plan: RecordPlan
    tokenizer: Tokenizer
    seed: int
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        record = Random(f"record/{self.seed}/{self.first + number}").choice(self.plan.records)
        return record_batch(record, self.plan, self.tokenizer)


def record_batch(record: Record, plan: RecordPlan, tokenizer: Tokenizer) -> Batch:
    """A batch of one. Raises MediaError where the medium cannot be read."""
    pixels, crops = _pixels(record, plan), _crop(record)
    slots = crops.shape[1] // CELL * (crops.shape[2] // CELL) if plan.reflection else 0
    start = tokenizer.encode(asked(question_text(record.question, (), record.kind))).ids
    reply = tokenizer.encode(replied(record.answer, slots)).ids
    skipped, colon = token_id(tokenizer, "<VR>"), token_id(tokenizer, ":")
    labels = [IGNORED] * len(start) + [IGNORED if token == skipped else token for token in reply]
    rows, columns = pixels.shape[1] // CELL, pixels.shape[2] // CELL
    grids = -(-len(pixels) // 2)

    def one(value: int) -> torch.Tensor:
        return torch.tensor([[value]])

    return Batch(
        record.kind, torch.from_numpy(pixels)[None], torch.tensor([[start + reply]]), torch.tensor([[labels]]),
        torch.from_numpy(crops)[None], torch.zeros(1, grids, rows, columns, HEADS, dtype=torch.uint8),
        one(len(start) + 1), one(len(start) + reply.index(colon)), one(0), one(IGNORED), [[record.kind]],
    )  # fmt: skip


def _pixels(record: Record, plan: RecordPlan) -> Pixels:
    """All that the model sees, uint8 [F, H, W, 3], exactly as the runtime reads it."""
    video = VideoBudget(max_frames=plan.max_frames, max_pixels=plan.frame_pixels, min_pixels=16 * CELL**2)
    return _read(
        open_media(
            record.medium,
            layout=PatchLayout(),
            image_budget=ImageBudget(max_pixels=plan.max_pixels),
            video_budget=video,
        )
    )


def _crop(record: Record) -> Pixels:
    """The box at its own resolution, or frames of the span: uint8 [1 or CLUE_FRAMES, h, w, 3]."""
    low, high = CROP_BUDGET
    if record.box:
        picture = read_rgb(record.medium, MediaLimits())
        left, top, right, bottom = (round(edge) for edge in record.box)
        cut = picture.crop((left, top, min(right, picture.width), min(bottom, picture.height)))
        return np.array(resize(cut, smart_resize(cut.height, cut.width, CELL, low, high)))[None]
    start_s, end_s = record.span_s or (None, None)
    budget = VideoBudget(max_frames=CLUE_FRAMES, min_pixels=low, max_pixels=high)
    clue = open_media(
        record.medium, layout=PatchLayout(), image_budget=ImageBudget(), video_budget=budget,
        start_s=start_s, end_s=end_s,
    )  # fmt: skip
    return _read(clue)


def _read(medium: Media) -> Pixels:
    """All frames uint8 [F, H, W, 3]: the runtime's patches put together again, so that training sees what it sees."""
    grids = np.concatenate(list(medium.patches(1)))
    frames = frames_of(grids, medium.grid[1], medium.grid[2])
    return frames[:1] if medium.kind == IMAGE else frames


def frames_of(patches: Pixels, rows: int, columns: int) -> Pixels:
    """The inverse of `patchify`: patches uint8 [G, rows * columns, values] -> frames uint8 [G * temporal, H, W, 3]."""
    layout = PatchLayout()
    merge, patch = layout.merge, layout.patch
    cut = patches.reshape(len(patches), rows // merge, columns // merge, merge, merge, 3, layout.temporal, patch, patch)
    # grid, group row, group column, row, column, channel, frame, y, x -> grid, frame, then rows, columns, channels
    ordered = cut.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return np.ascontiguousarray(ordered).reshape(-1, rows * patch, columns * patch, 3)
