"""Zooming: what is cut out, and what both passes are asked."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from reflectrt.bench.needle import videos, write
from reflectrt.bench.needle.places import ASK_IMAGE, CUT
from reflectrt.bench.zooming import answer, cut_out

OPTIONS = ("red", "blue")


@dataclass(frozen=True)
class Said:
    """As much of an answer as zooming reads."""

    text: str
    option: str | None
    forwards: int


@dataclass
class Model:
    """Replies `place` to questions without options and A to others; remembers what it was shown and asked."""

    place: str
    kind: str = "image"
    opened: list[list[tuple[int, int]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, *media):
        self.opened.append([Image.open(each).size for each in media if each.suffix == ".png"])
        return self

    def ask(self, question, options=(), **how):
        assert how["steps"] == 0
        self.asked.append(question)
        return Said(options[0], "A", 2) if options else Said(self.place, None, 9)


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((560, 560, 3), np.uint8)
    pixels[280:308, 392:420] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_picture_is_cut_where_the_reply_says(picture):
    crop = np.asarray(cut_out(Model("", "image"), picture, "14 10 14 10"))
    assert crop.shape == (CUT, CUT, 3)
    assert crop.sum() == 28 * 28 * 3 * 255
    assert np.asarray(cut_out(Model("", "image"), picture, "00 00 00 00")).sum() == 0
    assert cut_out(Model("", "image"), picture, "nowhere") is None


def test_a_film_gives_the_frame_in_the_middle_of_the_span(tmp_path):
    (item,) = videos(0, 1)
    write([item], tmp_path)
    (film,) = tmp_path.glob("*.mp4")
    frame = np.asarray(cut_out(Model("", "video"), film, "02 04")).astype(int)
    drawn = list(item.frames())[7].astype(int)
    assert np.abs(frame - drawn).mean() < 4
    assert cut_out(Model("", "video"), film, "98 99") is None


def test_the_second_pass_sees_the_crop_beside_the_picture(picture):
    model = Model("14 10 14 10")
    zoomed = answer(model, picture, "What colour?", OPTIONS)
    assert model.opened == [[(560, 560)], [(560, 560), (CUT, CUT)]]
    assert model.asked == [f"What colour?\n{ASK_IMAGE}", "What colour?"]
    assert (zoomed.option, zoomed.forwards, zoomed.reply) == ("A", 11, "14 10 14 10")
    assert list(picture.parent.glob("*crop*")) == []


def test_a_reply_without_a_place_is_answered_from_the_picture_alone(picture):
    model = Model("somewhere")
    assert answer(model, picture, "What colour?", OPTIONS).option == "A"
    assert model.opened == [[(560, 560)]]
