"""The six kinds of question about a film. Each has one right answer, in one event's frames."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random

from .film import Event, VideoScene
from .item import Draft, Question
from .palette import COLOURS, SHAPES
from .picture_questions import DIGIT_WORDS


def video_questions(random: Random, scene: VideoScene, limit: int) -> list[Question]:
    """Up to `limit` different questions about a scene, kinds in turn as far as the scene has them."""
    kinds: dict[str, list[Draft]] = {}
    for draft in (*_about_events(scene), *_about_order(random, scene)):
        kinds.setdefault(draft.category, []).append(draft)
    for drafts in kinds.values():
        random.shuffle(drafts)
    order = sorted(kinds)
    random.shuffle(order)
    chosen: list[Draft] = []
    while len(chosen) < limit and any(kinds.values()):
        chosen += [kinds[kind].pop() for kind in order if kinds[kind]]
    return [draft.finish(random) for draft in chosen[:limit]]


def _about_events(scene: VideoScene) -> Iterator[Draft]:
    """One hop: which digit, colour or shape flashed."""
    things = [event.thing for event in scene.events]
    small = [drifter.thing for drifter in scene.drifters]
    for event in scene.events:
        thing = event.thing
        if sum(other.shape == thing.shape for other in things) == 1:
            near = [other.colour for other in (*things, *small)]
            text = f"What colour is the {thing.shape} that flashes?"
            yield Draft(text, thing.colour, near, tuple(COLOURS), "flash colour", event.box, event.span)
        if sum(other.colour == thing.colour for other in things) == 1:
            near = [other.shape for other in (*things, *small)]
            text = f"Which shape flashes in {thing.colour}?"
            yield Draft(text, thing.shape, near, SHAPES, "flash shape", event.box, event.span)
        if thing.digit is not None:
            near = [str(other.digit) for other in things if other.digit is not None]
            text = f"Which digit flashes on the {thing.name}?"
            yield Draft(text, str(thing.digit), near, DIGIT_WORDS, "flash digit", event.box, event.span)


def _about_order(random: Random, scene: VideoScene) -> Iterator[Draft]:
    """Two hops in time: an event is found by name, and the one after or before it is asked for."""
    shown = [event.thing.name for event in scene.events]
    for earlier, later in pairwise(scene.events):
        yield _next_to(f"What is shown just after the {earlier.thing.name}?", later, earlier, shown, "after")
        yield _next_to(f"What is shown just before the {later.thing.name}?", earlier, later, shown, "before")
    four = sorted(random.sample(range(len(scene.events)), 4))
    first = scene.events[four[0]]
    names = [shown[number] for number in four]
    yield Draft("Which of these is shown first?", names[0], (), names, "first", first.box, first.span)


def _next_to(text: str, asked: Event, given: Event, shown: list[str], category: str) -> Draft:
    """Wrong options are other events of the film, so that seeing what is in it does not help."""
    pool = [name for name in shown if name != given.thing.name]
    more = [name for name in (f"{colour} {given.thing.shape}" for colour in COLOURS) if name not in shown]
    near = [name for name in pool if name != asked.thing.name]
    return Draft(text, asked.thing.name, near, [*pool, *more], category, asked.box, asked.span)
