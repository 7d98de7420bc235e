"""What the reference feeds transformers: the prompt's words, pixel values and positions."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..export.facts import VisionFacts
from .medium import Medium as Medium

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"


def prompt(media: Sequence[Medium], text: str) -> list[str | Medium]:
    """Qwen's chat prompt in pieces; special tokens part them, so each tokenizes as in the whole."""
    pieces: list[str | Medium] = [SYSTEM]
    for medium in media:
        pieces += ["<|vision_start|>", medium, "<|vision_end|>"]
    if media:
        return [*pieces, text + ASSISTANT]
    return [SYSTEM + text + ASSISTANT]


def user_text(question: str, options: Sequence[str], video: bool) -> str:
    """The user's words after the media, as the authors' evaluations of images and of videos put them."""
    if not options:
        return question
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    if video:
        return f"{question}\n{lines}\nAnswer with the option's letter from the given choices directly."
    return f"{question}\nOptions:\n{lines}\nOutput the letter of the correct answer only."


def text_positions(start: int, count: int) -> Tensor:
    """M-RoPE positions of text, int64 [3, count]: the same on the time, height and width axes."""
    return torch.arange(start, start + count).expand(3, -1)


def visual_positions(start: int, medium: Medium, vision: VisionFacts) -> Tensor:
    """M-RoPE positions of a medium's tokens, int64 [3, tokens]; text goes on at their maximum plus 1.

    Time: `start` for an image; for temporal grid i of a video, `start` + i * seconds_per_grid *
    tokens_per_second, cut to a whole number. Height and width: `start` + row or column on the merged grid.

    This is transformers 4.54 (`Qwen2_5_VLModel.get_rope_index`: `st_idx = llm_pos_ids_list[-1].max() + 1`),
    with which the authors trained and evaluated. 5.17 gives visual tokens the same positions, but lets text
    go on at `start` + max(h, w) / merge (`current_pos += max(grid_thw[1], grid_thw[2]) //
    spatial_merge_size`): in a video longer than wide, in the middle of its frames. (Then its generate()
    continues the answer from the maximum of all, leaving a gap.) For images both are the same. 4.54 cuts
    `seconds_per_grid` itself to whole seconds before it multiplies; at the default of 1.0 that is the same.
    """
    grids, rows, columns = medium.grid[0], *(side // vision.merge for side in medium.grid[1:])
    seconds = medium.seconds_per_grid if medium.kind == "video" else 0.0
    times = (torch.arange(grids) * (seconds * vision.tokens_per_second)).long()
    axes = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes]) + start


def normalise(patches: NDArray[np.uint8], vision: VisionFacts) -> Tensor:
    """Pixel values [G, N, 1176] of 0..255 as the encoder was trained on them: float32 [G * N, 1176]."""
    per_channel = vision.patch_values // vision.in_channels
    pixels = torch.from_numpy(patches).float().reshape(-1, vision.in_channels, per_channel)
    mean, std = (torch.tensor(values)[:, None] for values in (vision.image_mean, vision.image_std))
    return ((pixels / 255 - mean) / std).flatten(1)
