"""Places in words: told and read back, and the window around them."""

import pytest
from reflectrt.bench.needle.places import CUT, box_text, parse_box, parse_span, span_text, window


def test_a_box_comes_back_as_whole_cells():
    assert box_text((30, 56, 78, 104)) == "01 02 02 03"
    assert parse_box("01 02 02 03") == (28, 56, 84, 112)


def test_a_span_comes_back_as_whole_temporal_grid_rows():
    assert span_text((6, 11)) == "03 05"
    assert parse_span("03 05") == (6, 12)


@pytest.mark.parametrize("reply", ["", "A", "no idea", "01", "1 2 3 4"])
def test_a_reply_without_a_place_names_none(reply):
    assert parse_box(reply) is None
    assert parse_span(reply) is None


def test_the_window_stays_inside_the_picture():
    assert window((0, 0, 28, 28), (1008, 1008)) == (0, 0, CUT, CUT)
    assert window((2000, 2000, 2028, 2028), (1008, 1008)) == (1008 - CUT, 1008 - CUT, 1008, 1008)
    left, top, right, bottom = window((504, 504, 532, 532), (1008, 1008))
    assert (left + right) // 2 == (top + bottom) // 2 == 518
