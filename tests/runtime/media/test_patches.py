import random

import numpy as np
import pytest
from films import LAYOUT, opened
from PIL import Image
from reflectrt.runtime.errors import MediaError
from reflectrt.runtime.media import VideoBudget, smart_resize
from reflectrt.runtime.media.budget import frame_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as their_smart_resize

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@pytest.mark.parametrize(
    ("width", "height", "max_pixels"),
    [
        (640, 480, 460_800),
        (271, 639, 460_800),
        (28, 28, 9_408),
        (15, 15, 9_408),
        (1990, 15, 100_352),
        (333, 777, 9_408),
    ],
)
def test_patches_of_an_image_are_those_of_transformers(tmp_path, width: int, height: int, max_pixels: int) -> None:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    medium = opened(tmp_path / "noise.png", min_pixels=3136, max_pixels=max_pixels)
    theirs = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=max_pixels)(
        images=Image.fromarray(noise), return_tensors="np"
    )
    (patches,) = medium.patches(1)
    assert medium.grid == tuple(theirs["image_grid_thw"][0])
    channels = patches[0].reshape(len(patches[0]), 3, -1).astype(np.float32) / 255
    ours = (channels - MEAN[:, None]) / STD[:, None]
    np.testing.assert_allclose(ours.reshape(patches[0].shape), theirs["pixel_values"], atol=2e-6)
    assert medium.visual_tokens == len(theirs["pixel_values"]) // LAYOUT.merge**2


def test_sizes_are_those_of_transformers() -> None:
    dice = random.Random(0)
    for _ in range(3000):
        height, width = (int(2 ** dice.uniform(3.91, 13.5)) for _ in range(2))
        low = dice.choice([784, 3136, 50_176])
        high = low * dice.choice([1, 2, 4, 16, 4096])
        try:
            theirs = their_smart_resize(height, width, 28, low, high)
        except ValueError:
            with pytest.raises(MediaError, match="too long and thin"):
                smart_resize(height, width, 28, low, high)
            continue
        if max(height, width) != 200 * min(height, width):  # they let 200 itself pass
            assert smart_resize(height, width, 28, low, high) == theirs


def test_a_side_200_times_the_other_is_refused(tmp_path) -> None:
    Image.new("RGB", (20_000, 100)).save(tmp_path / "thin.png")
    with pytest.raises(MediaError, match=r"thin\.png.*too long and thin"):
        opened(tmp_path / "thin.png")
    assert smart_resize(100, 19_999, 28, 784, 10**7) == (112, 19_992)


def test_a_side_under_half_a_factor_counts_as_one_factor() -> None:
    assert smart_resize(10, 1990, 28, 3136, 100_352) == (28, 1988)  # as qwen-vl-utils; transformers makes it 28 x 812


@pytest.mark.parametrize("frames", [1, 2, 16, 128, 512, 5000])
def test_all_frames_share_the_pixels_of_a_video(frames: int) -> None:
    budget = VideoBudget()
    height, width = frame_size(1080, 1920, frames, 28, budget)
    cap = min(460_800, max(min(768 * 784, 20_000 * 784 / frames * 2), 1.05 * 64 * 784))
    assert (height, width) == their_smart_resize(1080, 1920, 28, 64 * 784, int(cap))
    assert height * width <= cap
