"""Video scenes: brief events over a filmed clip, with small things that stay or drift."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from .backgrounds import Background, Split, clip
from .item import Box, Span
from .palette import COLOURS, SHAPES, Pixels, Thing, paste

SIDES = (40, 44, 48, 52)  # px of an event's square
SMALL = (16, 20, 24)  # px of a thing that is there all the time
EVENTS = (4, 6)  # fewest, most


@dataclass(frozen=True)
class Event:
    """A thing shown in the frames of `span` (first, one past the last) at `box`."""

    thing: Thing
    box: Box
    span: Span


@dataclass(frozen=True)
class Drifter:
    """A small thing that is there all the time and drifts by `speed` sixteenths of a pixel a frame."""

    thing: Thing
    box: Box
    speed: tuple[int, int]

    def at(self, frame: int, size: tuple[int, int]) -> Box:
        """Its square in a frame, kept inside `size` (width, height)."""
        side = self.box[2] - self.box[0]
        corner = (min(max(self.box[axis] + self.speed[axis] * frame // 16, 0), size[axis] - side) for axis in (0, 1))
        left, top = corner
        return left, top, left + side, top + side


@dataclass(frozen=True)
class VideoScene:
    """All that happens in a film of `count` frames of `size` (width, height) px; events in order of time."""

    size: tuple[int, int]
    count: int
    background: Background
    drifters: tuple[Drifter, ...]
    events: tuple[Event, ...]

    def frames(self) -> Iterator[Pixels]:
        """Draw frame after frame: uint8 [height, width, 3]."""
        for number in range(self.count):
            canvas = self.background.window(*self.size, number)
            for drifter in self.drifters:
                paste(canvas, drifter.thing, drifter.at(number, self.size))
            for event in self.events:
                if event.span[0] <= number < event.span[1]:
                    paste(canvas, event.thing, event.box)
            yield canvas


def video_scene(random: Random, split: Split, size: tuple[int, int], count: int) -> VideoScene:
    """Events of under a tenth of `count` frames each, never two in one pair of frames (one visual time step)."""
    background = clip(random, split, *size)
    names = random.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], EVENTS[1] + 6)
    spans = _spans(random, count, random.randint(*EVENTS))
    events = tuple(Event(_thing(random, names.pop()), _box(random, size, SIDES), span) for span in spans)
    drifters = tuple(
        Drifter(Thing(*names.pop()), _box(random, size, SMALL), (random.randint(-12, 12), random.randint(-12, 12)))
        for _ in range(random.randint(2, 6))
    )
    return VideoScene(size, count, background, drifters, events)


def _thing(random: Random, name: tuple[str, str]) -> Thing:
    return Thing(*name, random.randrange(10) if random.random() < 0.7 else None)


def _box(random: Random, size: tuple[int, int], sides: tuple[int, ...]) -> Box:
    side = random.choice(sides)
    left, top = random.randint(0, size[0] - side), random.randint(0, size[1] - side)
    return left, top, left + side, top + side


def _spans(random: Random, count: int, events: int) -> list[Span]:
    """Disjoint spans in order, each shorter than a tenth of the frames."""
    longest = max(1, (count - 1) // 10)
    edges = [2 * (count // 2 * number // events) for number in range(events + 1)]  # even: pairs stay whole
    spans = []
    for low, high in pairwise(edges):
        length = random.randint(max(1, longest // 3), min(longest, high - low))
        first = random.randint(low, high - length)
        spans.append((first, first + length))
    return spans
