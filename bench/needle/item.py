"""A question about a picture or a film, and the media it is about."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .palette import Pixels

LETTERS = "ABCD"
Box = tuple[int, int, int, int]
Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    """Four options and where the answer is.

    box: the needle, in px of the image or of each frame, (left, top, right, bottom), right and bottom exclusive.
    span: frames that show the needle, (first, one past the last); None for images.
    """

    text: str
    options: tuple[str, str, str, str]
    label: str
    category: str
    box: Box
    span: Span | None = None

    @property
    def answer(self) -> str:
        """The right option's text."""
        return self.options[LETTERS.index(self.label)]


@dataclass(frozen=True)
class Draft:
    """A question whose options are still to be drawn: the answer, near misses, and all that could stand there."""

    text: str
    answer: str
    near: Sequence[str]
    pool: Sequence[str]
    category: str
    box: Box
    span: Span | None = None

    def finish(self, random: Random) -> Question:
        """Put up to two near misses and other wrong options beside the answer, in random order."""
        near = [word for word in dict.fromkeys(self.near) if word != self.answer]
        wrong = random.sample(near, min(2, len(near)))
        rest = [word for word in self.pool if word != self.answer and word not in wrong]
        options = [self.answer, *wrong, *random.sample(rest, 3 - len(wrong))]
        random.shuffle(options)
        a, b, c, d = options
        label = LETTERS[options.index(self.answer)]
        return Question(self.text, (a, b, c, d), label, self.category, self.box, self.span)


@dataclass(frozen=True)
class ImageItem:
    """One evaluation item; `pixels()` draws its image, uint8 [height, width, 3]."""

    id: str
    question: Question
    size: tuple[int, int]
    pixels: Callable[[], Pixels]


@dataclass(frozen=True)
class VideoItem:
    """One evaluation item; `frames()` draws its frames one after the other, uint8 [height, width, 3] each."""

    id: str
    question: Question
    size: tuple[int, int]
    count: int
    frames: Callable[[], Iterator[Pixels]]
