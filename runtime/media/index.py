"""The index of a video: every packet is read and none decoded.

It gives the true number of frames and their times, whatever the header claims, and the key frames to seek to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from ..engine import Array
from ..errors import LimitError, MediaError
from .budget import MediaLimits
from .container import check_size, films, opened
from .sampling import Timeline
from .sniff import shown

FALLBACK_RATE = 25.0  # FFmpeg's own guess for streams without times
BARE = ("h264", "hevc", "mpegvideo")
"""Streams without a container have no times at all."""
UNTIMED = (*BARE, "mpeg")
"""A program stream has times for some frames; FFmpeg's guesses for the others go astray (seen: 117000 ticks twice)."""
SEEK_BY_PTS = ("mov", "matroska")
"""Their key frames are found by times of presentation, the others' by times of decoding: else an MPEG-TS overshoots."""
WHOLE = 0.9
"""Headers are off by a few frames; less than this part of what they claim means that the file was cut."""


@dataclass(frozen=True)
class FrameIndex:
    """Every frame that the file holds, in the order shown."""

    times: Array
    """int64 [F] in units of `unit_s`, rising; counted from 0 where the file has no times to go by."""
    unit_s: float
    timed: bool
    """Whether the times are the file's own."""
    key_times: Array
    """int64 [K]: times of key frames; empty where seeking is impossible."""
    key_targets: Array
    """int64 [K]: what to seek to for each."""
    notes: tuple[str, ...]
    rate: float
    """Frames a second as the header has it; 0 where it does not say."""

    def timeline(self, first: int, last: int) -> Timeline:
        """The frames of a range."""
        return Timeline(self.times[first:last] * self.unit_s, self.rate)


@dataclass
class _Packets:
    """What one pass over the file collects."""

    shown: list[int | None] = field(default_factory=list)
    decoded: list[int | None] = field(default_factory=list)
    keys: list[tuple[int, int]] = field(default_factory=list)
    read: int = 0
    """With those that an edit list cuts away."""
    end_s: float = 0.0
    cut: bool = False
    error: bool = False


def read_index(path: Path, demuxer: str, limits: MediaLimits) -> FrameIndex:
    """Index every packet of the video stream. Raises MediaError and LimitError."""
    check_size(path, demuxer, limits)
    with opened(path, demuxer, limits) as (container, stream):
        found = _collect(path, container, stream, limits)
        if not found.shown:
            raise MediaError(f"{shown(path)} has a video stream without frames; convert it again from its source")
        notes = _damage(container, stream, found, demuxer)
        if (count := len(films(container))) > 1:
            notes = (*notes, f"the largest of {count} video streams is read")
        return _timed(stream, found, demuxer, notes) or _counted(stream, found, demuxer, notes)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The stream's whole packets to the end."""
    return (packet for packet in container.demux(stream) if packet.size and not _cut(packet))


def _cut(packet: av.Packet[Any]) -> bool:
    """Whether the file ended inside the packet: from its error, FFmpeg's decoding threads also lose frames before it.

    In an MPEG-TS the flag tells of a hole, which decoders patch.
    """
    return packet.is_corrupt and packet.stream.container.format.name != "mpegts"


def _collect(path: Path, container: InputContainer, stream: VideoStream, limits: MediaLimits) -> _Packets:
    found = _Packets()
    try:
        for packet in container.demux():
            if not packet.size:  # the one that flushes a decoder at the end
                continue
            if packet.pts is not None and packet.time_base:
                found.end_s = max(found.end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if _cut(packet):
                found.cut = True
                continue
            if len(found.shown) == limits.frames:
                raise LimitError(f"{shown(path)} has more than {limits.frames} frames; pass a shorter cut")
            found.read += 1
            if packet.is_keyframe and packet.pts is not None:
                found.keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:  # an edit list cuts it away: needed for decoding, never shown
                found.shown.append(packet.pts)
                found.decoded.append(packet.dts)
    except av.FFmpegError:
        found.error = True
    return found


def _timed(stream: VideoStream, found: _Packets, demuxer: str, notes: tuple[str, ...]) -> FrameIndex | None:
    """The index by the file's own times; None where they do not tell frames apart."""
    shown = [time for time in found.shown if time is not None]
    decoded = [time for time in found.decoded if time is not None]
    times = np.unique(np.array(shown, np.int64))
    if demuxer in UNTIMED or not stream.time_base or not len(times) == len(shown) == len(found.shown):
        return None
    if (np.diff(np.array(decoded, np.int64)) < 0).any():  # joined pieces that each start anew
        return None
    if demuxer == "avi" and found.shown != found.decoded:
        return None  # AVI has no times of presentation; where frames are reordered, FFmpeg's guesses are wrong
    by_pts = demuxer in SEEK_BY_PTS
    keys = dict(sorted((pts, pts if by_pts else dts) for pts, dts in found.keys))
    key_times, targets = (np.array([*part], np.int64) for part in (keys.keys(), keys.values()))
    rate = float(stream.average_rate or 0)
    return FrameIndex(times, float(stream.time_base), True, key_times, targets, notes, rate)


def _counted(stream: VideoStream, found: _Packets, demuxer: str, notes: tuple[str, ...]) -> FrameIndex:
    """The index by counting frames, which then are decoded from the first on."""
    rate = float(stream.average_rate or stream.guessed_rate or FALLBACK_RATE)
    if demuxer in BARE:
        notes = (*notes, f"the file has no times; taking {rate:g} frames a second")
    elif demuxer not in ("avi", "mpeg"):  # these two have a fixed rate
        notes = (*notes, f"times are missing or repeat; taking {rate:g} frames a second")
    none = np.empty(0, np.int64)
    return FrameIndex(np.arange(len(found.shown)), 1 / rate, False, none, none, notes, rate)


def _damage(container: InputContainer, stream: VideoStream, found: _Packets, demuxer: str) -> tuple[str, ...]:
    # A trimmed MP4 still claims the frames from before; FFmpeg's index of it holds those that are to be read.
    claimed = len(stream.index_entries) if demuxer == "mov" else stream.frames
    if found.cut or found.read < WHOLE * claimed:
        whole = f" of {claimed}" if claimed else ""
        return (f"the file is truncated: {found.read}{whole} frames are there",)
    if found.error:
        return (f"the file is damaged: reading stopped behind {found.read} frames",)
    if claimed or not container.duration or demuxer in UNTIMED:
        return ()
    start_s, whole_s = (container.start_time or 0) / av.time_base, container.duration / av.time_base
    if found.end_s - start_s < WHOLE * whole_s:
        return (f"the file is truncated: {found.end_s - start_s:.1f} of {whole_s:.1f} s are there",)
    return ()
