"""Videos through PyAV: an index of all packets first, then only the frames that are looked at, one at a time.

The index costs reading the file once and no decoding; it gives the true number of frames and their times, whatever the
header claims, and the key frames to seek to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from ..engine import Array
from ..errors import LimitError, MediaError
from .budget import MediaLimits, PatchLayout, Size, VideoBudget, frame_size
from .patches import patchify, resize
from .sampling import Timeline, chosen_frames, frame_count

FALLBACK_RATE = 25.0  # FFmpeg's own guess for streams without times
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, transfer characteristics
TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class FrameIndex:
    """Every frame that the file holds, in the order shown."""

    times: Array
    """int64 [F] in units of `unit_s`, rising; counted from 0 where the file has no times."""
    unit_s: float
    key_times: Array
    """int64 [K]: times of key frames; empty where seeking is impossible."""
    notes: tuple[str, ...]

    @property
    def timed(self) -> bool:
        """Whether the times are the file's own."""
        return len(self.key_times) > 0

    def timeline(self, first: int, last: int) -> Timeline:
        """The frames of a range."""
        return Timeline(self.times[first:last] * self.unit_s)


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
    ) -> None:
        self.path, self._demuxer, self._layout, self._limits = path, demuxer, layout, limits
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
        if read == 0:
            raise MediaError(f"{self.path} has no frame that can be decoded; convert it again from its source")
        if read < self.frames:
            self.warnings += (f"only {read} of {self.frames} frames could be read: the file is damaged",)
            self.frames = read

    def _pictures(self) -> Iterator[Array]:
        """The wanted frames in order, upright and resized: uint8 [H, W, 3]."""
        return (resize(upright(frame), self._size) for frame in self.decoded())

    def decoded(self) -> Iterator[VideoFrame]:
        """The wanted frames in order as the decoder gives them."""
        with opened(self.path, self._demuxer, self._limits) as (container, stream):
            decoder = Decoder(container, stream, self._index)
            for time in self._wanted:
                frame = decoder.frame_at(int(time))
                if frame is None:
                    break
                yield frame
            if decoder.errors:
                self.warnings += (f"{decoder.errors} damaged packets were skipped",)

    def _look(self) -> VideoFrame:
        """The first frame that decodes: its size, rotation and colours are the picture's, whatever the header says."""
        with opened(self.path, self._demuxer, self._limits) as (container, stream):
            frame = Decoder(container, stream, self._index).next_frame()
        if frame is None:
            raise MediaError(f"{self.path} has no frame that can be decoded; convert it again from its source")
        return frame


class Decoder:
    """Frames of an open stream, forward only, seeking over what is not wanted."""

    def __init__(self, container: InputContainer, stream: VideoStream, index: FrameIndex) -> None:
        self._container, self._stream, self._index = container, stream, index
        self._frames = self._decode()
        self._count = 0
        self._last: tuple[int, VideoFrame] | None = None
        self.errors = 0

    def frame_at(self, time: int) -> VideoFrame | None:
        """The frame shown at `time` (or the next that decodes); times must not fall. None at the end."""
        if self._last is None or self._last[0] < time:
            self._seek(time)
        while self._last is None or self._last[0] < time:
            if self.next_frame() is None:
                return None
        return self._last[1]

    def next_frame(self) -> VideoFrame | None:
        """The next frame in the order shown; None at the end."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        time = frame.pts if self._index.timed and frame.pts is not None else self._count
        self._last = (time, frame)
        self._count += 1
        return frame

    def _seek(self, time: int) -> None:
        """Jump to the last key frame before `time`, where that skips another one."""
        keys = self._index.key_times
        at = self._last[0] if self._last else int(self._index.times[0])
        before = np.searchsorted(keys, time, side="right") - 1
        if before < 1 or keys[before] <= at or not self._index.timed:
            return
        self._container.seek(int(keys[before]), stream=self._stream, backward=True)
        self._frames = self._decode()

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames from here on; packets that do not decode are counted and skipped."""
        for packet in _packets(self._container, self._stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self.errors += 1


@contextmanager
def opened(path: Path, demuxer: str, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file through one named demuxer and no protocol but `file`, and its video stream."""
    options = {"protocol_whitelist": "file", "format_whitelist": _whitelist(demuxer)}
    pixels = {"max_pixels": str(limits.frame_pixels)}
    try:
        container = av.open(
            f"file:{path.absolute()}",
            format=demuxer,
            options=pixels,  # for the decoders that look into the stream while it is opened
            container_options=options,
            metadata_errors="replace",
        )
    except av.FFmpegError as error:
        raise MediaError(
            f"{path} cannot be opened as {demuxer} ({_short(error)}): incomplete or damaged; copy or convert it again"
        ) from None
    with closing(container):
        stream = _video_stream(path, container)
        _check_size(path, stream, limits)
        stream.codec_context.thread_count = limits.decode_threads
        stream.thread_type = "AUTO"
        yield container, stream


def read_index(path: Path, demuxer: str, limits: MediaLimits) -> FrameIndex:
    """Index every packet of the video stream. Raises MediaError and LimitError."""
    with opened(path, demuxer, limits) as (container, stream):
        times: list[int] = []
        keys: list[int] = []
        timed = True
        for packet in _packets(container, stream):
            if packet.size == 0:  # the flushing packet that ends the stream
                continue
            if len(times) == limits.frames:
                raise LimitError(f"{path} has more than {limits.frames} frames; pass a shorter cut")
            timed = timed and packet.pts is not None
            times.append(packet.pts if packet.pts is not None else len(times))
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
        if not times:
            raise MediaError(f"{path} has a video stream without frames; convert it again from its source")
        return _index(stream, times, keys if timed else [], _truncation(stream, len(times)))


def _index(stream: VideoStream, times: list[int], keys: list[int], notes: tuple[str, ...]) -> FrameIndex:
    if keys and stream.time_base:
        unit = float(stream.time_base)
        return FrameIndex(np.unique(np.array(times)), unit, np.unique(np.array(keys)), notes)
    rate = float(stream.average_rate or stream.guessed_rate or FALLBACK_RATE)
    note = f"the file has no times; taking {rate:g} frames a second"
    return FrameIndex(np.arange(len(times)), 1 / rate, np.empty(0, np.int64), (*notes, note))


def _truncation(stream: VideoStream, found: int) -> tuple[str, ...]:
    """A header may claim a few frames too many or few; a tenth less means that the file was cut."""
    if stream.frames and found < 0.9 * stream.frames:
        return (f"the file is truncated: {found} of {stream.frames} frames are there",)
    return ()


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """Packets up to the end, or to where the container is too damaged to go on."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The largest stream that is film, not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        has = "audio" if container.streams.audio else "no picture"
        raise MediaError(f"{path} has {has} but no video stream; pass another file")
    return max(streams, key=lambda s: (s.width or 0) * (s.height or 0))


def _check_size(path: Path, stream: VideoStream, limits: MediaLimits) -> None:
    try:
        pixels = stream.width * stream.height
        name = stream.codec_context.name
    except (AttributeError, TypeError):
        raise MediaError(f"{path} has a codec that this build of FFmpeg cannot decode; convert it to H.264") from None
    if pixels > limits.frame_pixels:
        raise LimitError(
            f"{path} is {stream.width} x {stream.height} {name}, over the limit of "
            f"{limits.frame_pixels / 1e6:.0f} megapixels a frame; scale it down first"
        )


def _range(path: Path, index: FrameIndex, span_s: tuple[float | None, float | None]) -> tuple[int, int]:
    """First and one past the last frame between two times, counted from the first frame."""
    seconds = (index.times - index.times[0]) * index.unit_s
    start, end = span_s
    first = 0 if start is None else int(np.searchsorted(seconds, start, side="left"))
    last = len(seconds) if end is None else int(np.searchsorted(seconds, end, side="right"))
    if first >= last:
        until = "its end" if end is None else f"{end:g} s"
        raise MediaError(f"{path} has no frame between {start or 0:g} s and {until}; it is {seconds[-1]:.2f} s long")
    return first, last


def upright(frame: VideoFrame) -> Image.Image:
    """A frame as an RGB picture, turned as its display matrix says."""
    picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]  # PyAV leaves it so
    turn = TURNS.get(round(frame.rotation) % 360)
    return picture.transpose(turn) if turn is not None else picture


def _fit(path: Path, look: VideoFrame, frames: int, layout: PatchLayout, budget: VideoBudget) -> Size:
    turned = round(look.rotation) % 180 == 90
    height, width = (look.width, look.height) if turned else (look.height, look.width)
    try:
        return frame_size(height, width, frames, layout.factor, budget)
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from None


def _notes(look: VideoFrame) -> tuple[str, ...]:
    transfer = HDR_TRANSFERS.get(int(look.color_trc))
    return (f"HDR video ({transfer}) is read without tone mapping",) if transfer else ()


def _whitelist(demuxer: str) -> str:
    """FFmpeg's list of formats: the demuxer under all its names."""
    return {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}.get(demuxer, demuxer)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0][:80]
