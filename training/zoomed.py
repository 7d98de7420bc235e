"""What zooming learns from: its first pass's reply names a place, its second has the crop before the question."""

from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..bench.needle.item import Question
from ..bench.needle.places import ASK_IMAGE, ASK_VIDEO, CELL, box_text, seeking, span_text, window
from .prompt import Kind, answer_text, asked, question_text
from .row import IGNORED, Row, token_id

JITTER = 42  # px: named boxes will be off by a cell or more, so crops in training are too
WRONG = 0.2  # of the crops show some other place, so that the whole picture is not forgotten


def place_row(tokenizer: Tokenizer, ask: Question) -> Row:
    """The question and its place in text; slot and colon are those of its first digit."""
    text = seeking(ask.text, ASK_VIDEO if ask.span else ASK_IMAGE)
    question = tokenizer.encode(asked(text)).ids
    reply = tokenizer.encode(f"{span_text(ask.span) if ask.span else box_text(ask.box)}<|im_end|>").ids
    return Row(question + reply, [IGNORED] * len(question) + reply, len(question), len(question), IGNORED)


def zoomed_row(tokenizer: Tokenizer, ask: Question, kind: Kind, crop: NDArray[np.uint8]) -> Row:
    """The crop [1, height, width, 3] as a second picture, then the question; slot is the crop's first token."""
    tokens = crop.shape[1] // CELL * (crop.shape[2] // CELL)
    opening = tokenizer.encode("<|vision_end|><|vision_start|>").ids
    pads = [token_id(tokenizer, "<|image_pad|>")] * tokens
    question = opening + pads + tokenizer.encode(asked(question_text(ask.text, ask.options, kind))).ids
    reply = tokenizer.encode(f"{answer_text(ask.label)}<|im_end|>").ids
    return Row(question + reply, [IGNORED] * len(question) + reply, len(opening), len(question) + 3, IGNORED)


def zoomed_crop(pixels: NDArray[np.uint8], question: Question, random: Random) -> NDArray[np.uint8]:
    """What the second pass sees of pixels [F, H, W, 3]: a square or a whole frame, uint8 [1, h, w, 3]."""
    count, height, width = pixels.shape[:3]
    astray = random.random() < WRONG
    if question.span:
        return pixels[None, random.randrange(count) if astray else sum(question.span) // 2]
    left, top, right, bottom = question.box
    if astray:
        left = right = random.randrange(width)
        top = bottom = random.randrange(height)
    across, down = random.randint(-JITTER, JITTER), random.randint(-JITTER, JITTER)
    near = (left + across, top + down, right + across, bottom + down)
    left, top, right, bottom = window(near, (width, height))
    return pixels[:, top:bottom, left:right]
