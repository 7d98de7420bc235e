"""Whether media, question and answer fit the context, said before any picture is decoded."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import LimitError
from .manifest import Manifest
from .media import Media


def check_media_fit(manifest: Manifest, media: Sequence[Media], prefix: int, reserve: int) -> None:
    """Refuse media that the context cannot hold, naming a setting that fits."""
    limit = manifest.model.max_context
    if prefix + reserve <= limit:
        return
    room = max(0, limit - reserve - (prefix - sum(item.visual_tokens for item in media)))
    raise LimitError(
        f"{media[0].path}: {prefix + reserve} tokens with question and answer, the context holds {limit}; "
        + _cure(manifest, media, room)
    )


def _cure(manifest: Manifest, media: Sequence[Media], room: int) -> str:
    """The setting, with a number, that brings the visual tokens under `room`; none where none does."""
    larger = "export with a larger --max-context"
    pixels_per_token = (manifest.model.patch * manifest.model.merge) ** 2
    share = room // len(media)  # of each medium
    largest = max(item.visual_tokens // item.grid[0] for item in media)
    tokens = min(largest, share)  # of one temporal grid
    if all(item.kind == "image" for item in media):
        setting, floor = "", manifest.image.min_pixels
    else:
        grids = share // max(1, tokens)
        setting, floor = f"--max-frames {grids * manifest.model.temporal_patch} ", manifest.video.min_pixels
    if tokens < largest and tokens * pixels_per_token < floor:
        return f"question and answer leave too little room: shorten them, or {larger}"
    return f"pass {setting}--max-pixels {tokens * pixels_per_token} or {larger}"
