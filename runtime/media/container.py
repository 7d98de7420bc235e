"""Open a video container through FFmpeg: one named demuxer, one local file, no frame over the limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import LimitError, MediaError
from .budget import MediaLimits
from .nvdec import VideoDecoder, accelerator, check_accelerated, unavailable
from .sniff import shown

NO_DECODER = {"codec_whitelist": "none"}
"""FFmpeg decodes frames to look into a stream, which took 310 MB for one FLV frame of 16384 x 8192; without decoders it
reads the size from headers alone, in 2 MB."""

MOST_ATOMS = 1000  # a film has a handful at its top level, a fragmented one two a fragment
REPORTED = {"hevc": {"err_detect": "explode"}}
"""The HEVC decoder patches much in silence: of 32 films with 10 to 60 flipped bytes 12 were noticed without this and 20
with it, one of them refused for want of a sound key frame. Other decoders flag patched frames, or would drop them."""


@contextmanager
def opened(
    path: Path, demuxer: str, limits: MediaLimits, decoder: VideoDecoder = "cpu"
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file through one named demuxer and no protocol but `file`, and its video stream, ready to decode."""
    # Guards the decoders too: a size may be missing from the headers, or grow in the middle.
    guard = {"max_pixels": str(limits.frame_pixels)}
    nvdec = decoder == "nvdec"
    with closing(_open_on_gpu(path, demuxer, guard) if nvdec else _open(path, demuxer, guard, {})) as container:
        stream = _video_stream(path, container)
        if nvdec:
            check_accelerated(path, stream)
        context = _codec(path, stream)
        context.options = guard | REPORTED.get(context.name, {})
        context.thread_count = 1 if nvdec else limits.decode_threads
        stream.thread_type = "AUTO"
        yield container, stream


def check_size(path: Path, demuxer: str, limits: MediaLimits) -> None:
    """Read the size of the frames from the headers. Raises LimitError, or MediaError for what is no video."""
    with closing(_open(path, demuxer, {}, NO_DECODER)) as container:
        stream = _video_stream(path, container)
        name = _codec(path, stream).name
        if stream.width * stream.height > limits.frame_pixels:
            raise LimitError(
                f"{shown(path)} is {stream.width} x {stream.height} {name}, over the limit of "
                f"{limits.frame_pixels / 1e6:.0f} megapixels a frame; scale it down first"
            )


def _open(path: Path, demuxer: str, options: dict[str, str], more: dict[str, str]) -> InputContainer:
    try:
        return _av_open(path, demuxer, options, more, None)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if demuxer == "mov" and not _has_atom(path, b"moov"):
            raise MediaError(f"{shown(path)} has no index (moov): it is incomplete; copy or record it again") from None
        raise MediaError(
            f"{shown(path)} cannot be opened as {demuxer} ({reason(error)}): "
            "incomplete or damaged; copy or convert it again"
        ) from None


def _open_on_gpu(path: Path, demuxer: str, options: dict[str, str]) -> InputContainer:
    """A file that opens on the CPU: what fails here is the GPU."""
    try:
        return _av_open(path, demuxer, options, {}, accelerator())
    except (av.FFmpegError, OSError) as error:
        raise unavailable(path, f"no GPU of NVIDIA's with its driver: {reason(error)}") from None
    except RuntimeError:  # PyAV's, for a file without a stream that FFmpeg decodes on a GPU
        raise unavailable(path, "it has none of the file's codecs") from None


def _av_open(
    path: Path, demuxer: str, options: dict[str, str], more: dict[str, str], hwaccel: HWAccel | None
) -> InputContainer:
    return av.open(
        f"file:{path.absolute()}",
        format=demuxer,
        options=options,
        container_options={"protocol_whitelist": "file", "format_whitelist": _formats(demuxer), **more},
        metadata_errors="replace",
        hwaccel=hwaccel,
    )


def _has_atom(path: Path, name: bytes) -> bool:
    """Whether an MP4 has this atom at its top level."""
    try:
        with path.open("rb") as stream:
            for _ in range(MOST_ATOMS):
                head = stream.read(16)
                if len(head) < 8 or head[4:8] == name:
                    return len(head) >= 8
                size = int.from_bytes(head[:4], "big")
                if size == 1:  # the true size has 64 bits and follows
                    size = int.from_bytes(head[8:], "big")
                if size < 8:  # 0 means up to the end
                    return False
                stream.seek(size - len(head), os.SEEK_CUR)
    except (OSError, ValueError, OverflowError):
        return True  # nothing is known; the reader's own words will do
    return False


def _formats(demuxer: str) -> str:
    """FFmpeg's list of formats: the demuxer under all its names."""
    return {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}.get(demuxer, demuxer)


def films(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover pictures."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The largest stream that is film."""
    streams = films(container)
    if not streams:
        has = "audio" if container.streams.audio else "no picture"
        raise MediaError(f"{shown(path)} has {has} but no video stream; pass another file")
    return max(streams, key=lambda s: (s.width or 0) * (s.height or 0) if s.codec_context else 0)


def _codec(path: Path, stream: VideoStream) -> av.VideoCodecContext:
    # PyAV leaves it None where FFmpeg has no decoder, which its types do not say.
    context: av.VideoCodecContext | None = stream.codec_context
    if context is None:
        raise MediaError(f"{shown(path)} has a codec that this build of FFmpeg cannot decode; convert it to H.264")
    return context


def reason(error: Exception) -> str:
    """FFmpeg's words for an error, on one line."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).split("\n")[0][:80]
