"""Small films whose frames carry their number in 8 bright or dark fields, so that a test can tell which one it got."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from reflectrt.runtime.media import ImageBudget, Media, MediaLimits, PatchLayout, VideoBudget, open_media

LAYOUT = PatchLayout()
DARK, BRIGHT = 40, 215
GOPS = {"bf": "2", "g": "8", "x264-params": "scenecut=0:keyint=8:min-keyint=8"}


def numbered(number: int, width: int = 112, height: int = 84) -> np.ndarray:
    """A picture uint8 [H, W, 3] with 4 x 2 fields: the bits of `number`, the highest first."""
    bits = (number >> np.arange(7, -1, -1) & 1).reshape(2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    grey = np.where(bits[rows][:, columns], BRIGHT, DARK).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number in a picture of any size; sees only the middle of each field."""
    height, width, _ = picture.shape
    rows, columns = (np.array([1, 3]) * height // 4, np.array([1, 3, 5, 7]) * width // 8)
    bits = picture[rows][:, columns].mean(axis=2) > (DARK + BRIGHT) / 2
    return int((bits.ravel() << np.arange(7, -1, -1)).sum())


def film(
    path: Path,
    frames: int | Iterable[np.ndarray] = 40,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    times_ms: Sequence[int] | None = None,
    muxer: dict[str, str] | None = None,
    **of_codec: Any,
) -> Path:
    """Write a film; `frames` numbered ones or pictures, `times_ms` in place of an even rate."""
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else list(frames)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or (GOPS if codec == "libx264" else {}))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in of_codec.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=of_codec.get("colorspace"), dst_color_range=of_codec.get("color_range")
            )
            frame.pts = number if times_ms is None else times_ms[number]
            if times_ms is not None:
                frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def opened(
    path: Path,
    *,
    fps: float = 1000.0,
    max_frames: int = 512,
    min_pixels: int = 784,
    max_pixels: int = 460_800,
    limits: MediaLimits | None = None,
    **how: Any,
) -> Media:
    """A medium at its own size by default, with every frame."""
    video = VideoBudget(fps=fps, max_frames=max_frames, min_pixels=min_pixels, max_pixels=max_pixels)
    return open_media(
        path,
        layout=LAYOUT,
        image_budget=ImageBudget(min_pixels, max_pixels),
        video_budget=video,
        limits=limits or MediaLimits(),
        **how,
    )


def pictures(medium: Media, chunk: int = 4) -> np.ndarray:
    """All frames uint8 [F, H, W, 3] out of a medium's patches (the inverse of `patchify`)."""
    patches = np.concatenate(list(medium.patches(chunk)))
    grids, rows, columns = medium.grid
    assert patches.shape == (grids, rows * columns, 1176)
    assert patches.dtype == np.uint8
    cut = patches.reshape(grids, rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)
    return cut.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(grids * 2, rows * 14, columns * 14, 3)


def numbers(medium: Media, chunk: int = 4) -> list[int]:
    """The numbers of a numbered film's frames, as read."""
    return [number_of(picture) for picture in pictures(medium, chunk)]
