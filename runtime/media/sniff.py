"""What a file is, by its first bytes and never by its name; anything unknown is refused before a decoder sees it.

FFmpeg runs a text file named .mp4 as a concat script and a playlist as a list of addresses to fetch. So the container
is recognised here, and FFmpeg is told to use exactly its demuxer on exactly this file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import MediaError

HEAD_BYTES = 4096
TS_PACKET = 188

IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
IMAGE_BRANDS = (b"avif", b"avis")
MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
VIDEO_STARTS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\0\0\x01\xba": "mpeg",
    b"\0\0\x01\xb3": "mpegvideo",
    b"DKIF": "ivf",
    b"YUV4MPEG2": "yuv4mpegpipe",
}


@dataclass(frozen=True)
class Kind:
    """Image or video; `demuxer` is FFmpeg's name for a video's container."""

    kind: Literal["image", "video"]
    demuxer: str = ""


def sniff(path: Path) -> Kind:
    """What the file holds. Raises MediaError where it is not a regular file, or neither image nor video."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise MediaError(f"{path}: {(error.strerror or str(error)).lower()}; check the path") from None
    except ValueError:
        raise MediaError(f"{str(path)!r} is not a path; check it") from None
    if stat.S_ISDIR(mode):
        raise MediaError(f"{path} is a directory; pass the files in it")
    if not stat.S_ISREG(mode):
        raise MediaError(f"{path} is not a regular file; save the video or image to one first")
    kind = recognise(_head(path))
    if kind is None:
        raise MediaError(f"{path} is neither a video nor an image that we know; convert it to MP4, MKV, PNG or JPEG")
    return kind


def recognise(head: bytes) -> Kind | None:
    """The kind of a file from its first bytes; None where unknown."""
    if head.startswith(IMAGE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return Kind("image")
    if head[4:8] == b"ftyp" and head[8:12] in IMAGE_BRANDS:
        return Kind("image")
    if head[4:8] in MOV_ATOMS:
        return Kind("video", "mov")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Kind("video", "avi")
    for start, demuxer in VIDEO_STARTS.items():
        if head.startswith(start):
            return Kind("video", demuxer)
    if head[:1] == b"G" and head[TS_PACKET : TS_PACKET + 1] == b"G" and head[2 * TS_PACKET :][:1] in (b"G", b""):
        return Kind("video", "mpegts")
    return _elementary(head)


def _elementary(head: bytes) -> Kind | None:
    """A bare H.264 or HEVC stream: a start code, then a parameter set or delimiter."""
    body = head[4:] if head.startswith(b"\0\0\0\x01") else head[3:] if head.startswith(b"\0\0\x01") else b""
    if not body:
        return None
    if body[0] >> 1 & 0x3F in (32, 33, 35):  # VPS, SPS, AUD
        return Kind("video", "hevc")
    return Kind("video", "h264") if body[0] & 0x1F in (7, 9) else None  # SPS, AUD


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return os.read(stream.fileno(), HEAD_BYTES)
    except OSError as error:
        raise MediaError(f"{path}: {(error.strerror or str(error)).lower()}; check its permissions") from None
