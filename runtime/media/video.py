"""Videos through PyAV: an index of all packets first, then only the frames that are looked at, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ..engine import Array
from ..errors import MediaError
from ..prefetch import map_ahead
from .budget import MediaLimits, PatchLayout, Size, VideoBudget, frame_size
from .container import opened
from .decoder import Decoder, upright, upright_size
from .index import FrameIndex, read_index
from .nvdec import VideoDecoder, planar, unavailable
from .patches import patchify, resize
from .sampling import chosen_frames, frame_count
from .sniff import check_unchanged, shown, stamp

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, transfer characteristics


class VideoMedium:
    """One video; frames are decoded when `patches` is called."""

    kind: Literal["video"] = "video"

    def __init__(
        self,
        path: Path,
        demuxer: str,
        layout: PatchLayout,
        budget: VideoBudget,
        limits: MediaLimits,
        span_s: tuple[float | None, float | None],
        decoder: VideoDecoder = "cpu",
    ) -> None:
        self.path, self._demuxer, self._layout, self._limits = path, demuxer, layout, limits
        self._decoder = decoder
        self._stamp = stamp(path)
        self._index = read_index(path, demuxer, limits)
        first, last = _range(path, self._index, span_s)
        timeline = self._index.timeline(first, last)
        self._wanted = self._index.times[first + chosen_frames(timeline, frame_count(timeline, budget))]
        look = self._look()
        self._size: Size = _fit(path, look, len(self._wanted), layout, budget)
        self.frames = len(self._wanted)
        self.warnings: tuple[str, ...] = (*self._index.notes, *_notes(look))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal grids, height and width in patches."""
        grids = -(-self.frames // self._layout.temporal)
        return grids, self._size[0] // self._layout.patch, self._size[1] // self._layout.patch

    @property
    def visual_tokens(self) -> int:
        """Embeddings that the vision encoder will make of it."""
        grids, height, width = self.grid
        return grids * height * width // self._layout.merge**2

    @property
    def second_per_grid(self) -> float:
        """Mean seconds between temporal grids."""
        gaps = max(1, len(self._wanted) - 1)
        span = float(self._wanted[-1] - self._wanted[0]) * self._index.unit_s
        return span / gaps * self._layout.temporal

    def patches(self, grids_per_chunk: int) -> Iterator[Array]:
        """Patches uint8 [G, N, values] in order; MediaError where no frame decodes."""
        chunk, pair, read = [], [], 0
        for pixels in self._pictures():
            read += 1
            pair.append(pixels)
            if len(pair) == self._layout.temporal:
                chunk.append(self._grid_of(pair))
                pair = []
            if len(chunk) == grids_per_chunk:
                yield np.stack(chunk)
                chunk = []
        if pair:
            chunk.append(self._grid_of(pair))
        self._finish(read)
        if chunk:
            yield np.stack(chunk)

    def _grid_of(self, frames: list[Array]) -> Array:
        """One temporal grid; its last frame is repeated where there are too few."""
        missing = self._layout.temporal - len(frames)
        return patchify(np.stack([*frames, *[frames[-1]] * missing]), self._layout)

    def _finish(self, read: int) -> None:
        if read == 0 and self._decoder == "nvdec":
            raise unavailable(self.path, "it decoded no frame")
        if read == 0:
            raise MediaError(f"{shown(self.path)} has no frame that can be decoded; convert it again from its source")
        if read < self.frames:
            self.warnings += (f"only {read} of {self.frames} frames could be read: the file is damaged",)
            self.frames = read

    def _pictures(self) -> Iterator[Array]:
        """The wanted frames in order, upright and resized: uint8 [H, W, 3]."""
        reformatter = VideoReformatter()
        pictures = (upright(planar(frame, reformatter), reformatter) for frame in self.decoded())
        return map_ahead(lambda picture: resize(picture, self._size), pictures, self._limits.resize_threads)

    def decoded(self) -> Iterator[VideoFrame]:
        """The wanted frames in order as the decoder gives them. Raises MediaError."""
        check_unchanged(self.path, self._stamp)
        with opened(self.path, self._demuxer, self._limits, self._decoder) as (container, stream):
            decoder = Decoder(container, stream, self._index, frozenset(map(int, self._wanted)))
            for time in self._wanted:
                frame = decoder.frame_at(int(time))
                if frame is None:
                    break
                yield frame
            self.warnings += decoder.notes()

    def _look(self) -> VideoFrame:
        """The first frame that decodes: its size, rotation and colours are the picture's, whatever the header says."""
        with opened(self.path, self._demuxer, self._limits) as (container, stream):
            frame = Decoder(container, stream, self._index).next_frame()
        if frame is None:
            raise MediaError(f"{shown(self.path)} has no frame that can be decoded; convert it again from its source")
        return frame


def _range(path: Path, index: FrameIndex, span_s: tuple[float | None, float | None]) -> tuple[int, int]:
    """First and one past the last frame between two times, counted from the first frame."""
    seconds = (index.times - index.times[0]) * index.unit_s
    start, end = span_s
    first = 0 if start is None else int(np.searchsorted(seconds, start, side="left"))
    last = len(seconds) if end is None else int(np.searchsorted(seconds, end, side="right"))
    if first >= last:
        until = "its end" if end is None else f"{end:g} s"
        raise MediaError(
            f"{shown(path)} has no frame between {start or 0:g} s and {until}; it is {seconds[-1]:.2f} s long"
        )
    return first, last


def _fit(path: Path, look: VideoFrame, frames: int, layout: PatchLayout, budget: VideoBudget) -> Size:
    height, width = upright_size(look)
    try:
        return frame_size(height, width, frames, layout.factor, budget)
    except MediaError as error:
        raise MediaError(f"{shown(path)}: {error}") from None


def _notes(look: VideoFrame) -> tuple[str, ...]:
    transfer = HDR_TRANSFERS.get(int(look.color_trc))
    return (f"HDR video ({transfer}) is read without tone mapping",) if transfer else ()
