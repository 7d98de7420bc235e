"""Whether media, question and answer fit the context, said before any picture is decoded.

What takes most is what the message names: its setting, with a value that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import LimitError
from .manifest import Manifest
from .media import Media
from .prompt import MediaKind

LARGER = "export with a larger --max-context"


@dataclass(frozen=True)
class Need:
    """Tokens that a question takes behind the media, by what asks for them."""

    question: int
    """The question with its options and template, and what is fixed around the answer."""
    steps: int = 0
    """Reflection steps."""
    answer: int = 0
    """New tokens of a free text, as many as the caller allows."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.question + self.steps + self.answer


def check_media_fit(manifest: Manifest, media: Sequence[Media], prefix: int, need: Need) -> None:
    """Refuse media that the context cannot hold beside the question. Raises LimitError."""
    excess = prefix + need.total - manifest.model.max_context
    if excess <= 0:
        return
    visual = sum(item.visual_tokens for item in media)
    raise LimitError(
        f"{media[0].path}: {prefix + need.total} tokens with question and answer, the context holds "
        f"{manifest.model.max_context}; {_less_behind(need, excess, visual) or _less_media(manifest, media, excess)}"
    )


def check_question_fit(manifest: Manifest, kind: MediaKind, held: int, need: Need) -> None:
    """Refuse a question for which the context has no room behind the `held` tokens of the media. Raises LimitError."""
    excess = held + need.total - manifest.model.max_context
    if excess <= 0:
        return
    setting = "--max-frames" if kind == "video" else "--max-pixels"
    raise LimitError(
        f"medium, question and answer take {held + need.total} tokens, the context holds {manifest.model.max_context}; "
        + (_less_behind(need, excess, held) or f"open the medium with a smaller {setting}, or {LARGER}")
    )


def _less_behind(need: Need, excess: int, visual: int) -> str | None:
    """What to ask less of where question, steps or answer take more than the media; None where the media do."""
    most = max(need.question, need.steps, need.answer)
    if visual >= most:
        return None
    if most == need.answer and need.answer > excess:
        return f"pass --max-new-tokens {need.answer - excess} or less"
    if most == need.steps and need.steps >= excess:
        return f"pass --steps {need.steps - excess} or less"
    return f"question and answer leave too little room: shorten them, or {LARGER}"


def _less_media(manifest: Manifest, media: Sequence[Media], excess: int) -> str:
    """The setting, with a number, that takes `excess` off the visual tokens; none where none does."""
    pixels_per_token = (manifest.model.patch * manifest.model.merge) ** 2
    share = max(0, sum(item.visual_tokens for item in media) - excess) // len(media)  # of each medium
    largest = max(item.visual_tokens // item.grid[0] for item in media)
    tokens = min(largest, share)  # of one temporal grid
    if all(item.kind == "image" for item in media):
        setting, floor = "", manifest.image.min_pixels
    else:
        grids = share // max(1, tokens)
        setting, floor = f"--max-frames {grids * manifest.model.temporal_patch} ", manifest.video.min_pixels
    if tokens < largest and tokens * pixels_per_token < floor:
        return f"question and answer leave too little room: shorten them, or {LARGER}"
    return f"pass {setting}--max-pixels {tokens * pixels_per_token} or {LARGER}"
