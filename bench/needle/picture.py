"""Image scenes: things scattered over a photograph, some in pairs side by side."""

from dataclasses import dataclass
from random import Random

from .backgrounds import Background, Split, photograph
from .item import Box
from .palette import COLOURS, SHAPES, Pixels, Thing, paste

CELL = 112  # px: one thing or one pair to a cell, so no two overlap
SIDES = (36, 40, 44, 48)  # px of a thing's square; 48 x 48 is 0.23 % of a megapixel
GAP = 6  # px between the two of a pair
WHERE = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Placed:
    """A thing and its square in px."""

    thing: Thing
    box: Box


@dataclass(frozen=True)
class Pair:
    """Things side by side: `other` lies `where` the `anchor` (indices into the scene's things)."""

    anchor: int
    other: int
    where: str


@dataclass(frozen=True)
class ImageScene:
    """All that is in a picture; `size` is (width, height) in px."""

    size: tuple[int, int]
    background: Background
    things: tuple[Placed, ...]
    pairs: tuple[Pair, ...]

    def pixels(self) -> Pixels:
        """Draw it: uint8 [height, width, 3]."""
        canvas = self.background.window(*self.size)
        for placed in self.things:
            paste(canvas, placed.thing, placed.box)
        return canvas


def image_scene(random: Random, split: Split, size: tuple[int, int], cells: tuple[int, int]) -> ImageScene:
    """Scatter things over `cells` (fewest, most) cells of a picture; every colour-and-shape is there at most once."""
    columns, rows = size[0] // CELL, size[1] // CELL
    background = photograph(random, split, *size)
    count = min(random.randint(*cells), columns * rows, 24)
    names = random.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], 2 * count)
    things: list[Placed] = []
    pairs: list[Pair] = []
    for cell in random.sample(range(columns * rows), count):
        corner = (cell % columns * CELL, cell // columns * CELL)
        if random.random() < 0.5:
            things.append(_single(random, names.pop(), corner))
        else:
            pairs.append(Pair(len(things), len(things) + 1, random.choice(WHERE)))
            things += _pair(random, names.pop(), names.pop(), corner, pairs[-1].where)
    return ImageScene(size, background, tuple(things), tuple(pairs))


def _thing(random: Random, name: tuple[str, str], digit_in_ten: int) -> Thing:
    digit = random.randrange(10) if random.randrange(10) < digit_in_ten else None
    return Thing(*name, digit)


def _square(left: int, top: int, side: int) -> Box:
    return left, top, left + side, top + side


def _single(random: Random, name: tuple[str, str], corner: tuple[int, int]) -> Placed:
    side = random.choice(SIDES)
    left, top = (edge + random.randint(0, CELL - side) for edge in corner)
    return Placed(_thing(random, name, 8), _square(left, top, side))


def _pair(
    random: Random, anchor: tuple[str, str], other: tuple[str, str], corner: tuple[int, int], where: str
) -> list[Placed]:
    """Two things of one size in a cell, anchor first."""
    side = random.choice(SIDES)
    along = random.randint(0, CELL - 2 * side - GAP)
    across = random.randint(0, CELL - side)
    first = _thing(random, anchor, 3), _thing(random, other, 8)
    ordered = first[::-1] if where in ("left of", "above") else first
    boxes = []
    for step in (along, along + side + GAP):
        shift = (step, across) if where in ("left of", "right of") else (across, step)
        boxes.append(_square(corner[0] + shift[0], corner[1] + shift[1], side))
    placed = [Placed(thing, box) for thing, box in zip(ordered, boxes, strict=True)]
    return placed[::-1] if where in ("left of", "above") else placed
