"""Decode with NVDEC, a GPU's own unit for video, through FFmpeg; frames that are looked at come back to the host.

Decoders of the standards give the same numbers, so the answer is the CPU's; only the planes lie otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from av.codec.hwaccel import HWAccel
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import ResourceError
from .sniff import shown

VideoDecoder = Literal["cpu", "nvdec"]
"""What decodes a video; `nvdec` is an error where it cannot."""

PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}
"""What NVDEC gives, and the same numbers as the CPU's decoders lay them: colours are converted from these by code of
its own, with other rounding."""


def accelerator() -> HWAccel:
    """What `av.open` takes to decode on the first GPU, or not at all; frames stay there.

    In a context of its own: FFmpeg refuses the process's first where ONNX Runtime has opened it with other flags.
    """
    return HWAccel("cuda", allow_software_fallback=False, is_hw_owned=True, options={"primary_ctx": "0"})


def check_accelerated(path: Path, stream: VideoStream) -> None:
    """Raises ResourceError where the stream's codec is none of NVDEC's."""
    if not stream.codec_context.is_hwaccel:
        raise unavailable(path, f"it has no {stream.codec_context.name}")


def unavailable(path: Path, why: str) -> ResourceError:
    """The error for a file that NVDEC cannot decode here."""
    return ResourceError(f"NVDEC cannot decode {shown(path)} ({why}); ask without --decoder nvdec")


def planar(frame: VideoFrame, reformatter: VideoReformatter) -> VideoFrame:
    """A frame on the host, with its planes as the CPU's decoders lay them."""
    on_gpu = frame.sw_format
    kind = (on_gpu or frame.format).name
    if on_gpu is None and kind not in PLANAR:
        return frame
    return reformatter.reformat(frame, format=PLANAR.get(kind, kind), threads=1)
