"""Places in words, as zooming tells them: boxes in cells of the picture, spans in temporal grid rows."""

import re

from .item import Box, Span

CELL = 28  # px to a merged visual token's side: boxes are told in these
CUT = 112  # px: what is cut out of a picture is CUT x CUT, at its own resolution
FRAMES = 2  # to a temporal grid row: spans are told in these


ASK_IMAGE = "Where is it? Give its box."
ASK_VIDEO = "When is it? Give its span."
"""What follows the question, in place of the options."""


def seeking(question: str, asked: str) -> str:
    """The first pass's text."""
    return f"{question}\n{asked}"


def box_text(box: Box) -> str:
    """A box in px (left, top, right, bottom; the latter two exclusive) as whole cells, first and last."""
    left, top, right, bottom = box
    cells = (left // CELL, top // CELL, (right - 1) // CELL, (bottom - 1) // CELL)
    return " ".join(f"{cell:02}" for cell in cells)


def span_text(span: Span) -> str:
    """Frames (first, one past the last) as temporal grid rows, first and last."""
    return f"{span[0] // FRAMES:02} {(span[1] - 1) // FRAMES:02}"


def parse_box(text: str) -> Box | None:
    """The box that a reply names, in px; None where it names none."""
    cells = _numbers(text, 4)
    if not cells:
        return None
    left, top, right, bottom = cells
    return left * CELL, top * CELL, (right + 1) * CELL, (bottom + 1) * CELL


def parse_span(text: str) -> Span | None:
    """The frames that a reply names; None where it names none."""
    rows = _numbers(text, 2)
    return (rows[0] * FRAMES, (rows[1] + 1) * FRAMES) if rows else None


def _numbers(text: str, count: int) -> list[int]:
    found = [int(number) for number in re.findall(r"\d\d", text)]
    return found[:count] if len(found) >= count else []


def window(box: Box, size: tuple[int, int]) -> Box:
    """The CUT x CUT square around a box, kept inside a picture of `size` (width, height) px."""
    corner = [min(max((box[axis] + box[axis + 2] - CUT) // 2, 0), max(size[axis] - CUT, 0)) for axis in (0, 1)]
    left, top = corner
    return left, top, left + CUT, top + CUT
