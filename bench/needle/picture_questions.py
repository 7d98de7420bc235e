"""The six kinds of question about a picture. Each has one right answer, in one thing's square."""

from collections.abc import Iterator
from random import Random

from .item import Draft, Question
from .palette import COLOURS, SHAPES
from .picture import ImageScene, Pair, Placed

DIGIT_WORDS = tuple(str(digit) for digit in range(10))


def image_questions(random: Random, scene: ImageScene, limit: int) -> list[Question]:
    """Up to `limit` different questions about a scene, kinds in turn as far as the scene has them."""
    kinds: dict[str, list[Draft]] = {}
    for draft in (*_about_things(scene), *_about_pairs(scene)):
        kinds.setdefault(draft.category, []).append(draft)
    for drafts in kinds.values():
        random.shuffle(drafts)
    order = sorted(kinds)
    random.shuffle(order)
    chosen: list[Draft] = []
    while len(chosen) < limit and any(kinds.values()):
        chosen += [kinds[kind].pop() for kind in order if kinds[kind]]
    return [draft.finish(random) for draft in chosen[:limit]]


def _about_things(scene: ImageScene) -> Iterator[Draft]:
    """One hop: a thing is found by two of its three properties, the third is asked for."""
    for placed in scene.things:
        thing = placed.thing
        if thing.digit is None:
            continue
        like = [other.thing for other in scene.things if other is not placed and other.thing.digit is not None]
        near = [str(o.digit) for o in like if o.shape == thing.shape or o.colour == thing.colour]
        text = f"Which digit is on the {thing.name}?"
        yield Draft(text, str(thing.digit), near, DIGIT_WORDS, "digit", placed.box)
        if not any((o.shape, o.digit) == (thing.shape, thing.digit) for o in like):
            text = f"What colour is the {thing.shape} with the digit {thing.digit}?"
            near = [o.colour for o in like if o.shape == thing.shape or o.digit == thing.digit]
            yield Draft(text, thing.colour, near, tuple(COLOURS), "colour", placed.box)
        if not any((o.colour, o.digit) == (thing.colour, thing.digit) for o in like):
            text = f"Which {thing.colour} shape has the digit {thing.digit}?"
            near = [o.shape for o in like if o.colour == thing.colour or o.digit == thing.digit]
            yield Draft(text, thing.shape, near, SHAPES, "shape", placed.box)


def _about_pairs(scene: ImageScene) -> Iterator[Draft]:
    """Two hops: the anchor is found by name, and its neighbour's property is asked for."""
    for pair in scene.pairs:
        anchor, other = scene.things[pair.anchor].thing, scene.things[pair.other]
        yield _neighbour_colour(scene, pair, other)
        text = f"Which shape is {pair.where} the {anchor.name}?"
        yield Draft(text, other.thing.shape, [anchor.shape], SHAPES, "neighbour shape", other.box)
        if other.thing.digit is not None:
            near = [str(anchor.digit)] if anchor.digit is not None else []
            text = f"Which digit is on the shape {pair.where} the {anchor.name}?"
            yield Draft(text, str(other.thing.digit), near, DIGIT_WORDS, "neighbour digit", other.box)


def _neighbour_colour(scene: ImageScene, pair: Pair, other: Placed) -> Draft:
    anchor, thing = scene.things[pair.anchor].thing, other.thing
    near = [placed.thing.colour for placed in scene.things if placed.thing.shape == thing.shape]
    text = f"What colour is the {thing.shape} {pair.where} the {anchor.name}?"
    return Draft(text, thing.colour, near, tuple(COLOURS), "neighbour colour", other.box)
