"""Needle questions: one small thing in a big picture, one brief event in a long film.

    for item in images(seed=7, count=100):
        item.pixels()                       # uint8 [height, width, 3], 1 to 4 megapixels
        item.question.text, item.question.options, item.question.label

`images` and `videos` draw evaluation items; training (`split="train"`) has backgrounds of its own.
"""

from .item import ImageItem, Question, VideoItem
from .items import images, videos
from .write import write

__all__ = ["ImageItem", "Question", "VideoItem", "images", "videos", "write"]
