"""The needle task: the same pixels for a seed, needles as small as promised, no background shared."""

import hashlib
import json
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from reflectrt.bench.needle import images, videos, write
from reflectrt.bench.needle.backgrounds import FOLDER
from reflectrt.bench.needle.film import video_scene
from reflectrt.bench.needle.item import LETTERS
from reflectrt.bench.needle.palette import COLOURS, SHAPES, Thing, sprite


def test_a_seed_means_the_same_items_whatever_the_count():
    few, many = list(images(5, 3)), list(images(5, 6))
    assert [item.question for item in few] == [item.question for item in many[:3]]
    assert np.array_equal(few[2].pixels(), many[2].pixels())
    assert next(iter(images(6, 1))).question != few[0].question


def test_sprites_have_the_bytes_they_always_had():
    digest = hashlib.sha256()
    for shape in SHAPES:
        for number, colour in enumerate(COLOURS):
            for part in sprite(Thing(shape, colour, number), 44):
                digest.update(part.tobytes())
    assert digest.hexdigest()[:16] == "d34afe86e665233d"


def test_questions_have_the_words_they_always_had():
    words = [(item.question.text, item.question.options) for item in (*images(0, 20), *videos(0, 20))]
    assert hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16] == "cb37b03173de9cdb"


def test_image_needles_are_small_and_pictures_large():
    for item in images(1, 60):
        x0, y0, x1, y1 = item.question.box
        area = item.size[0] * item.size[1]
        assert 1e6 <= area <= 4.1e6
        assert (x1 - x0) * (y1 - y0) < 0.005 * area
        assert 0 <= x0 < x1 <= item.size[0] and 0 <= y0 < y1 <= item.size[1]


def test_video_needles_are_brief():
    for item in videos(1, 60):
        first, end = item.question.span
        assert 16 <= item.count <= 128
        assert 0 <= first < end <= item.count
        assert end - first < 0.1 * item.count


def test_every_question_has_one_right_option():
    items = [*images(2, 100), *videos(2, 100)]
    for item in items:
        assert len(set(item.question.options)) == 4
        assert item.question.answer == item.question.options[LETTERS.index(item.question.label)]
    assert len({item.question.category for item in items[:100]}) >= 5
    assert len({item.question.category for item in items[100:]}) >= 5
    assert {item.question.label for item in items} == set(LETTERS)


def test_no_two_events_share_a_pair_of_frames():
    for seed in range(50):
        scene = video_scene(Random(seed), "eval", (224, 224), 16)
        for earlier, later in pairwise(scene.events):
            assert (earlier.span[1] - 1) // 2 < later.span[0] // 2


def test_training_and_evaluation_share_no_background():
    hashes = {
        split: {hashlib.sha256(path.read_bytes()).hexdigest() for path in (FOLDER / split).rglob("*.jpg")}
        for split in ("train", "eval")
    }
    assert hashes["train"] and hashes["eval"]
    assert not hashes["train"] & hashes["eval"]


def test_written_media_show_what_was_drawn(tmp_path):
    av = pytest.importorskip("av")
    item = next(item for item in videos(3, 20) if item.count == 16)
    lines = [json.loads(line) for line in write([item], tmp_path).read_text().splitlines()]
    assert lines[0]["label"] == item.question.label
    with av.open(str(tmp_path / lines[0]["media"][0])) as container:
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    drawn = list(item.frames())
    assert len(read) == len(drawn)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(read, drawn, strict=True)) < 8
