"""Evaluation items by seed: item `n` of a seed is the same whatever the count."""

from collections.abc import Iterator
from random import Random

from .backgrounds import Split
from .film import video_scene
from .film_questions import video_questions
from .item import ImageItem, Question, VideoItem
from .picture import image_scene
from .picture_questions import image_questions

# (width, height) in px, multiples of 28 so that a model of patch 14 and merge 2 sees them unscaled; 1 to 4 megapixels.
IMAGE_SIZES = (
    (1008, 1008), (1008, 1008), (1344, 784), (1148, 952), (1344, 1008), (1008, 1344), (1568, 1120), (2240, 1792),
)  # fmt: skip
IMAGE_CELLS = (12, 24)
VIDEO_SIZES = ((224, 224), (280, 224), (224, 280), (336, 252))
VIDEO_COUNTS = (16, 24, 32, 48, 64, 96, 128)
Item = ImageItem | VideoItem


def images(seed: int, count: int, split: Split = "eval") -> Iterator[ImageItem]:
    """`count` pictures with one question each, kinds of question in turn."""
    for number in range(count):
        random = Random(f"needle-image/{split}/{seed}/{number}")
        size = random.choice(IMAGE_SIZES)
        scene = image_scene(random, split, size, IMAGE_CELLS)
        question = _pick(random, image_questions(random, scene, 1000))
        yield ImageItem(f"image-{seed}-{number}", question, size, scene.pixels)


def videos(seed: int, count: int, split: Split = "eval") -> Iterator[VideoItem]:
    """`count` films with one question each, kinds of question in turn."""
    for number in range(count):
        random = Random(f"needle-video/{split}/{seed}/{number}")
        size, frames = random.choice(VIDEO_SIZES), random.choice(VIDEO_COUNTS)
        scene = video_scene(random, split, size, frames)
        question = _pick(random, video_questions(random, scene, 1000))
        yield VideoItem(f"video-{seed}-{number}", question, size, frames, scene.frames)


def groups(seed: int, count: int, questions: int, split: Split = "eval") -> Iterator[list[Item]]:
    """`count` media, pictures and films in turn and of the lesser sizes, with up to `questions` questions each."""
    for number in range(count):
        random = Random(f"needle-groups/{split}/{seed}/{number}")
        name = f"group-{seed}-{number}"
        if number % 2 == 0:
            size = random.choice(IMAGE_SIZES[:4])
            picture = image_scene(random, split, size, IMAGE_CELLS)
            yield [ImageItem(name, each, size, picture.pixels) for each in image_questions(random, picture, questions)]
        else:
            size, frames = random.choice(VIDEO_SIZES), random.choice(VIDEO_COUNTS[:4])
            film = video_scene(random, split, size, frames)
            found = video_questions(random, film, questions)
            yield [VideoItem(name, each, size, frames, film.frames) for each in found]


def _pick(random: Random, questions: list[Question]) -> Question:
    """One question, every kind that the scene offers being as likely as any other."""
    kind = random.choice(sorted({question.category for question in questions}))
    return random.choice([question for question in questions if question.category == kind])
