"""Frames of a video one at a time: forward only, seeking over what is not wanted, exact to the frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from .index import FrameIndex, packets

TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
HIDDEN_FRAMES = "vp8"  # has packets that are never shown, so that a frame after the wanted one is no sign of damage
THINNED = "h264"
"""Says of each frame whether any other is predicted from it. HEVC's bit holds for one temporal layer alone."""


class Decoder:
    """Frames of an open stream, in the order shown; all, or at least those at the `wanted` times."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, index: FrameIndex, wanted: Collection[int] | None = None
    ) -> None:
        self._container, self._stream, self._index = container, stream, index
        self._wanted = wanted if index.timed and stream.codec_context.name == THINNED else None
        self._progressive = False
        self._seekable = True
        self.decoded = 0
        self._last: tuple[int, VideoFrame] | None = None
        self._frames = self._decode(packets(container, stream))
        self.bad_packets = 0
        self.missed = 0
        """Frames in whose place the next one was taken."""
        self.concealed = 0
        """Frames whose holes the decoder has patched."""

    def frame_at(self, time: int) -> VideoFrame | None:
        """The frame shown at `time`, or the next that decodes; times must not fall. None at the end."""
        sought = (self._last is None or self._last[0] < time) and self._skip_to(time)
        found = self._advance(time)
        if sought and self._lost(found, time):
            # A frame behind the wanted one: damage, or a key frame that is none. Decoding all tells.
            self._rewind()
            found = self._advance(time)
        if found is None:
            return None
        frame = found[1]
        self.missed += self._lost(found, time)
        self.concealed += frame.is_corrupt
        return frame

    def _advance(self, time: int) -> tuple[int, VideoFrame] | None:
        while self._last is None or self._last[0] < time:
            if self.next_frame() is None:
                return None
        return self._last

    def _lost(self, found: tuple[int, VideoFrame] | None, time: int) -> bool:
        return found is None or (found[0] != time and self._stream.codec_context.name != HIDDEN_FRAMES)

    def next_frame(self) -> VideoFrame | None:
        """The next frame in the order shown; None at the end."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        time = frame.pts if self._index.timed and frame.pts is not None else self.decoded
        self._last = (time, frame)
        self._progressive = not frame.interlaced_frame
        self.decoded += 1
        return frame

    def notes(self) -> tuple[str, ...]:
        """What was damaged so far."""
        counts = {
            "damaged packets skipped": self.bad_packets,
            "frames lost, the next ones stand in": self.missed,
            "frames partly damaged": self.concealed,
        }
        return tuple(f"{what}: {count}" for what, count in counts.items() if count)

    def _skip_to(self, time: int) -> bool:
        """Jump to the last key frame up to `time`, where that skips another one; whether it did."""
        keys = self._index.key_times
        before = int(np.searchsorted(keys, time, side="right")) - 1
        at = self._last[0] if self._last else int(self._index.times[0])
        if not self._seekable or before < 1 or keys[before] <= at:
            return False
        start = self._key_packet(int(self._index.key_targets[before]))
        if start is None or start.pts is None or start.pts > time:
            self._rewind()
            return False
        self._frames = self._decode(chain([start], packets(self._container, self._stream)))
        return True

    def _rewind(self) -> None:
        """Where seeking led astray: decode all from the first frame on, and seek no more."""
        self._seekable, self._last = False, None
        start = self._key_packet(int(self._index.key_targets[0]))
        self._frames = self._decode(chain([start] if start else [], packets(self._container, self._stream)))

    def _key_packet(self, target: int) -> av.Packet[VideoStream] | None:
        """Seek, and read on to a key frame: an MPEG-TS also lands between two, whence decoders make up pictures."""
        try:
            self._container.seek(target, stream=self._stream, backward=True)
            return next((p for p in packets(self._container, self._stream) if p.is_keyframe), None)
        except av.FFmpegError:
            return None

    def _decode(self, coded: Iterator[av.Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """All frames from here on; packets that do not decode are counted and skipped."""
        while (packet := self._next(coded)) is not None:
            self._stream.codec_context.skip_frame = "DEFAULT" if self._needed(packet) else "NONREF"
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self.bad_packets += 1
        try:
            yield from self._stream.codec_context.decode(None)  # what the decoder still holds back
        except av.FFmpegError:
            self.bad_packets += 1

    def _needed(self, packet: av.Packet[VideoStream]) -> bool:
        """Whether the packet must be decoded even where no other frame is predicted from it.

        Two fields of an interlaced frame may come in two packets, one of them with another time.
        """
        return self._wanted is None or not self._progressive or packet.pts is None or packet.pts in self._wanted

    def _next(self, coded: Iterator[av.Packet[VideoStream]]) -> av.Packet[VideoStream] | None:
        """The next packet; None at the end, or where the container is too damaged to go on."""
        try:
            return next(coded, None)
        except av.FFmpegError:
            self.bad_packets += 1
            return None


def upright(frame: VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """A frame as an RGB picture, turned as its display matrix says.

    One `reformatter` serves all frames: setting it up anew with its threads, as `frame.to_image` does, took 18 ms of
    720p where the conversion takes 1.4 ms.
    """
    picture = Image.fromarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    turn = TURNS.get(round(frame.rotation) % 360)
    return picture.transpose(turn) if turn is not None else picture


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Height and width of the same picture."""
    turned = round(frame.rotation) % 180 == 90
    return (frame.width, frame.height) if turned else (frame.height, frame.width)
