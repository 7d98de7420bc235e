"""Zooming: what is cut out."""

import numpy as np
from PIL import Image
from reflectrt.bench.needle.places import CUT
from reflectrt.bench.zooming import cut_out


class Opened:
    """As much of a session as cutting needs."""

    def __init__(self, kind):
        self.kind = kind


def test_a_picture_is_cut_where_the_reply_says(tmp_path):
    pixels = np.zeros((560, 560, 3), np.uint8)
    pixels[280:308, 392:420] = 255
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    crop = np.asarray(cut_out(Opened("image"), file, "14 10 14 10"))
    assert crop.shape == (CUT, CUT, 3)
    assert crop.sum() == pixels.sum()
    assert np.asarray(cut_out(Opened("image"), file, "00 00 00 00")).sum() == 0
    assert cut_out(Opened("image"), file, "nowhere") is None
