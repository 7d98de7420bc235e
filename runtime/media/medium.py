"""What the rest of the runtime sees of an opened image or video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from ..engine import Array


class Media(Protocol):
    """An opened medium: its size in tokens is known, no picture has been decoded but one frame to look at."""

    @property
    def kind(self) -> Literal["image", "video"]:
        """Image or video."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal grids, height and width in patches; fewer grids after reading where the file is damaged."""

    @property
    def frames(self) -> int:
        """Frames that are looked at (1 for an image); as read, once they are."""

    @property
    def visual_tokens(self) -> int:
        """Embeddings that the vision encoder will make of it."""

    @property
    def second_per_grid(self) -> float:
        """Seconds between temporal grids; 0 for an image."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd about the file, complete once it is read."""

    def patches(self, grids_per_chunk: int) -> Iterator[Array]:
        """Patches uint8 [G, N, values] in order, `grids_per_chunk` temporal grids at a time."""
