"""Small pictures with questions, which calibrate and verify take."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A samples.jsonl about ten small pictures."""
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in range(10):
        pixels = random.integers(0, 256, (84, 112, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        options = ["red", "green", "blue", "white"]
        lines.append({"media": [f"{number}.png"], "question": f"Colour {number}?", "options": options, "label": "A"})
    samples = folder / "samples.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return samples
