"""Needle items as files: PNG images, real mp4 films, and `samples.jsonl`."""

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from PIL import Image

from .item import ImageItem, VideoItem

FRAMES_PER_SECOND = 2  # what `fps=2` sampling asks for: a reader that samples so sees every frame
# x264: near lossless, so that a needle of one frame survives; and the same bytes from every processor (it takes other
# instructions on each, which choose differently).
QUALITY = {"crf": "12", "preset": "fast", "bf": "0", "x264-params": "cpu-independent=1"}


def write(items: Iterable[ImageItem | VideoItem], folder: Path) -> Path:
    """Write the media of `items` and `samples.jsonl` under `folder`; return the latter's path.

    A line: id, media (file names), question, options, label, category, box, span (frames; null for images).
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "samples.jsonl"
    with samples.open("w", encoding="utf-8") as lines:
        for item in items:
            lines.write(json.dumps(sample_line(item, write_media(item, folder).relative_to(folder))) + "\n")
    return samples


def write_media(item: ImageItem | VideoItem, folder: Path) -> Path:
    """Write one item's PNG or mp4 under `folder` and return its path."""
    if isinstance(item, ImageItem):
        path = folder / f"{item.id}.png"
        Image.fromarray(item.pixels()).save(path, compress_level=1)
        return path
    path = folder / f"{item.id}.mp4"
    _write_mp4(item, path)
    return path


def _write_mp4(item: VideoItem, path: Path) -> None:
    import av  # here, because machines that only train have no PyAV

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options=QUALITY)
        stream.width, stream.height = item.size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for pixels in item.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def sample_line(item: ImageItem | VideoItem, media: Path) -> dict[str, object]:
    """One line of samples.jsonl."""
    question = item.question
    return {
        "id": item.id,
        "media": [str(media)],
        "question": question.text,
        "options": list(question.options),
        "label": question.label,
        "category": question.category,
        "box": list(question.box),
        "span": list(question.span) if question.span else None,
    }
