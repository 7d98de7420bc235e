"""Open images and videos: hostile until shown otherwise, streamed, and in patches when they come out."""

from __future__ import annotations

from pathlib import Path

from .budget import ImageBudget, MediaLimits, PatchLayout, VideoBudget, smart_resize
from .image import ImageMedium
from .medium import Media
from .nvdec import VideoDecoder
from .patches import patchify
from .sniff import sniff
from .video import VideoMedium

IMAGE_NAMES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
VIDEO_NAMES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".wmv"}

__all__ = [
    "ImageBudget",
    "Media",
    "MediaLimits",
    "PatchLayout",
    "VideoBudget",
    "VideoDecoder",
    "open_media",
    "patchify",
    "smart_resize",
]


def open_media(
    path: Path,
    *,
    layout: PatchLayout,
    image_budget: ImageBudget,
    video_budget: VideoBudget,
    limits: MediaLimits | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    decoder: VideoDecoder = "cpu",
) -> Media:
    """Open an image or video, by its content; `start_s` and `end_s` cut a video, `decoder` decodes it.

    Nothing is decoded but one frame of a video. Raises MediaError (not readable) and LimitError (too large).
    """
    limits = limits or MediaLimits()
    kind = sniff(path)
    if kind.kind == "image":
        image = ImageMedium(path, layout, image_budget, limits)
        if path.suffix.lower() in VIDEO_NAMES:
            image.warnings += (f"the file is an image, whatever its name ends in ({path.suffix})",)
        return image
    video = VideoMedium(path, kind.demuxer, layout, video_budget, limits, (start_s, end_s), decoder)
    if path.suffix.lower() in IMAGE_NAMES:
        video.warnings += (f"the file is a video, whatever its name ends in ({path.suffix})",)
    return video
