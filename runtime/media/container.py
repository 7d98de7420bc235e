"""Open a video container through FFmpeg: one named demuxer, one local file, no frame over the limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ..errors import LimitError, MediaError
from .budget import MediaLimits

NO_DECODER = {"codec_whitelist": "none"}
"""FFmpeg decodes frames to look into a stream, which took 310 MB for one FLV frame of 16384 x 8192; without decoders it
reads the size from headers alone, in 2 MB."""

REPORTED = {"hevc": {"err_detect": "explode"}}
"""The HEVC decoder patches much in silence: of 32 films with 10 to 60 flipped bytes 12 were noticed without this and 20
with it, one of them refused for want of a sound key frame. Other decoders flag patched frames, or would drop them."""


@contextmanager
def opened(path: Path, demuxer: str, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file through one named demuxer and no protocol but `file`, and its video stream, ready to decode."""
    # Guards the decoders too: a size may be missing from the headers, or grow in the middle.
    guard = {"max_pixels": str(limits.frame_pixels)}
    with closing(_open(path, demuxer, guard, {})) as container:
        stream = _video_stream(path, container)
        context = _codec(path, stream)
        context.options = guard | REPORTED.get(context.name, {})
        context.thread_count = limits.decode_threads
        stream.thread_type = "AUTO"
        yield container, stream


def check_size(path: Path, demuxer: str, limits: MediaLimits) -> None:
    """Read the size of the frames from the headers. Raises LimitError, or MediaError for what is no video."""
    with closing(_open(path, demuxer, {}, NO_DECODER)) as container:
        stream = _video_stream(path, container)
        name = _codec(path, stream).name
        if stream.width * stream.height > limits.frame_pixels:
            raise LimitError(
                f"{path} is {stream.width} x {stream.height} {name}, over the limit of "
                f"{limits.frame_pixels / 1e6:.0f} megapixels a frame; scale it down first"
            )


def _open(path: Path, demuxer: str, options: dict[str, str], more: dict[str, str]) -> InputContainer:
    try:
        return av.open(
            f"file:{path.absolute()}",
            format=demuxer,
            options=options,
            container_options={"protocol_whitelist": "file", "format_whitelist": _formats(demuxer), **more},
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(
            f"{path} cannot be opened as {demuxer} ({reason(error)}): incomplete or damaged; copy or convert it again"
        ) from None


def _formats(demuxer: str) -> str:
    """FFmpeg's list of formats: the demuxer under all its names."""
    return {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}.get(demuxer, demuxer)


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The largest stream that is film, not a cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        has = "audio" if container.streams.audio else "no picture"
        raise MediaError(f"{path} has {has} but no video stream; pass another file")
    return max(streams, key=lambda s: (s.width or 0) * (s.height or 0) if s.codec_context else 0)


def _codec(path: Path, stream: VideoStream) -> av.VideoCodecContext:
    # PyAV leaves it None where FFmpeg has no decoder, which its types do not say.
    context: av.VideoCodecContext | None = stream.codec_context
    if context is None:
        raise MediaError(f"{path} has a codec that this build of FFmpeg cannot decode; convert it to H.264")
    return context


def reason(error: Exception) -> str:
    """FFmpeg's words for an error, on one line."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).split("\n")[0][:80]
