"""Questions as the checkpoint was trained to read them."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

from .errors import UsageError

MediaKind = Literal["image", "video"]
MAX_OPTIONS = len(string.ascii_uppercase)


@dataclass(frozen=True)
class Question:
    """One question; `options` makes it multiple choice. Raises UsageError where it cannot be asked."""

    text: str
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.text, *self.options)):
            raise UsageError("question and options are text; pass strings")
        if not self.text.strip():
            raise UsageError("the question is empty; pass some text")
        if len(self.options) > MAX_OPTIONS:
            raise UsageError(f"{len(self.options)} options, but letters end at Z; pass at most {MAX_OPTIONS}")
        if len(self.options) == 1:
            raise UsageError("one option leaves nothing to choose; pass two or more, or none for free text")
        if any(not option.strip() for option in self.options):
            raise UsageError("an option is empty; pass some text for each")
        if not all(map(_is_text, (self.text, *self.options))):
            raise UsageError("the question or an option is not UTF-8 text; pass it in that encoding")

    def prompt(self, kind: MediaKind) -> str:
        """The user's text after the medium (wording of the authors' evaluation of images and of videos)."""
        if not self.options:
            return self.text
        lines = [f"{letter}. {option}\n" for letter, option in zip(string.ascii_uppercase, self.options, strict=False)]
        options = "".join(lines)
        if kind == "video":
            return f"{self.text}\n{options}Answer with the option's letter from the given choices directly."
        return f"{self.text}\nOptions:\n{options}Output the letter of the correct answer only."


def _is_text(text: str) -> bool:
    """Whether it can be encoded: bytes that were no UTF-8 reach us as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
