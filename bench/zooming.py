"""Zooming, reflection's rival: name the place in text, cut it out, encode it again, answer in a second forward pass.

For bundles of checkpoints trained for it (`training.zooming`); both passes run on the same engines as reflection does,
the second from the medium's pixels on, as published zooming methods do it. A reply that names no place costs one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image

from ..runtime.session import Model, Session
from .needle.places import ASK_IMAGE, ASK_VIDEO, parse_box, parse_span, seeking, window

REPLY_TOKENS = 16  # "08 12 09 13" and the end are 12


@dataclass(frozen=True)
class Zoomed:
    """The chosen letter, decoder runs of both passes, and what the first one replied."""

    option: str | None
    forwards: int
    reply: str


def answer(model: Model, medium: Path, question: str, options: tuple[str, ...]) -> Zoomed:
    """Both passes over a file. Raises what opening and asking raise."""
    opened = model.open(medium)
    asked = seeking(question, ASK_VIDEO if opened.kind == "video" else ASK_IMAGE)
    place = opened.ask(asked, steps=0, max_new_tokens=REPLY_TOKENS)
    crop = cut_out(opened, medium, place.text)
    if crop is None:
        direct = opened.ask(question, options, steps=0)
        return Zoomed(direct.option, place.forwards + direct.forwards, place.text)
    file = medium.with_name(f"{medium.stem}-crop.png")
    crop.save(file)
    final = model.open(medium, file).ask(question, options, steps=0)
    file.unlink()
    return Zoomed(final.option, place.forwards + final.forwards, place.text)


def cut_out(opened: Session, medium: Path, reply: str) -> Image.Image | None:
    """What the reply names: a square of the picture, the frame in the middle of the span, or nothing."""
    if opened.kind == "video":
        span = parse_span(reply)
        return _frame(medium, sum(span) // 2) if span else None
    box = parse_box(reply)
    if box is None:
        return None
    with Image.open(medium) as picture:
        return picture.convert("RGB").crop(window(box, picture.size))


def _frame(medium: Path, number: int) -> Image.Image | None:
    """A frame by number, None behind the film's end."""
    with av.open(str(medium)) as film:
        for count, frame in enumerate(film.decode(video=0)):
            if count == number:
                return Image.fromarray(frame.to_ndarray(format="rgb24"))
    return None
