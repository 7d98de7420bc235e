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
TS_PACKET, M2TS_PACKET = 188, 192  # cameras and Blu-ray put 4 bytes of time before each packet

IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
AVIF_BRANDS = (b"avif", b"avis")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
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


def shown(path: Path) -> str:
    """A path for a message of one line: as it is, or quoted with escapes where it holds a newline or the like."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def stamp(path: Path) -> tuple[int, ...]:
    """What tells that a file is the same as before. Raises MediaError where it is gone."""
    found = _stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, ...]) -> None:
    """Raises MediaError where the file is gone, or not the one that was stamped."""
    if stamp(path) != before:
        raise MediaError(f"{shown(path)} was changed after it was opened; open it again once it is complete")


def sniff(path: Path) -> Kind:
    """What the file holds. Raises MediaError where it is not a regular file, or neither image nor video."""
    mode = _stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise MediaError(f"{shown(path)} is a directory; pass the files in it")
    if not stat.S_ISREG(mode):
        raise MediaError(f"{shown(path)} is not a regular file; save the video or image to one first")
    head = _head(path)
    kind = recognise(head)
    if kind is None and _brands(head)[:1] and _brands(head)[0] in HEIF_BRANDS:
        raise MediaError(f"{shown(path)} is a HEIF photo, which we cannot read; convert it to JPEG")
    if kind is None:
        raise MediaError(
            f"{shown(path)} is neither a video nor an image that we know; convert it to MP4, MKV, PNG or JPEG"
        )
    return kind


def recognise(head: bytes) -> Kind | None:
    """The kind of a file from its first bytes; None where unknown."""
    if head.startswith(IMAGE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return Kind("image")
    brands = _brands(head)
    if any(brand in AVIF_BRANDS for brand in brands):
        return Kind("image")
    if brands and brands[0] in HEIF_BRANDS:  # FFmpeg would show one tile of the photo as a video
        return None
    if head[4:8] in MOV_ATOMS:
        return Kind("video", "mov")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Kind("video", "avi")
    for start, demuxer in VIDEO_STARTS.items():
        if head.startswith(start):
            return Kind("video", demuxer)
    if _has_rhythm(head, TS_PACKET) or _has_rhythm(head[M2TS_PACKET - TS_PACKET :], M2TS_PACKET):
        return Kind("video", "mpegts")
    return _elementary(head)


def _brands(head: bytes) -> list[bytes]:
    """Major and compatible brands of an ISO file."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]


def _has_rhythm(head: bytes, packet: int) -> bool:
    """Whether MPEG-TS packets begin at every so many bytes."""
    return head[:1] == b"G" and head[packet : packet + 1] == b"G" and head[2 * packet :][:1] in (b"G", b"")


def _elementary(head: bytes) -> Kind | None:
    """A bare H.264 or HEVC stream: a start code, then a parameter set or delimiter."""
    body = head[4:] if head.startswith(b"\0\0\0\x01") else head[3:] if head.startswith(b"\0\0\x01") else b""
    if not body:
        return None
    if body[0] >> 1 & 0x3F in (32, 33, 35):  # VPS, SPS, AUD
        return Kind("video", "hevc")
    return Kind("video", "h264") if body[0] & 0x1F in (7, 9) else None  # SPS, AUD


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise MediaError(f"{shown(path)}: {(error.strerror or str(error)).lower()}; check the path") from None
    except ValueError:
        raise MediaError(f"{str(path)!a} is not a path; check it") from None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return os.read(stream.fileno(), HEAD_BYTES)
    except OSError as error:
        raise MediaError(f"{shown(path)}: {(error.strerror or str(error)).lower()}; check its permissions") from None
