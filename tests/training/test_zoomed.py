"""Zooming's training rows: places in text, crops before the question, positions as the runtime gives them."""

from random import Random

import numpy as np
import pytest
import torch
from reflectrt.bench.needle.places import CUT, parse_box, parse_span
from reflectrt.runtime.positions import position_after, text_positions, visual_positions
from reflectrt.training import decoder
from reflectrt.training.dense import PlaceHeads
from reflectrt.training.losses import zooming
from reflectrt.training.model import SmallModel, new_model
from reflectrt.training.network import Network
from reflectrt.training.row import IGNORED
from reflectrt.training.scenes import PLACE, ZOOMED, Plan, make_batch
from reflectrt.training.stage0 import decoder_weights
from reflectrt.training.tokens import train_tokenizer

TINY = SmallModel(
    hidden=64, layers=2, heads=4, kv_heads=2, mlp=64, vision_hidden=64, vision_depth=2, vision_heads=2, vision_mlp=64,
    full_attention=(1,), mrope_section=(2, 3, 3),
)  # fmt: skip
SIZES = {"image": ((224, 224),), "video": ((112, 112),)}


def _plan(kind, turn):
    return Plan(kind, SIZES[kind], 1, 2, (1,) if kind == "image" else (16,), (3, 4), turn=turn)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.mark.parametrize(("kind", "parse"), [("image", parse_box), ("video", parse_span)])
def test_the_first_pass_learns_a_place_that_can_be_read_back(tokenizer, kind, parse):
    batch = make_batch(_plan(kind, PLACE), tokenizer, Random(0))
    reply = [label for label in batch.labels[0, 0].tolist() if label != IGNORED]
    assert parse(tokenizer.decode(reply)) is not None
    assert reply[-1] == tokenizer.token_to_id("<|im_end|>")


def test_the_second_pass_has_room_for_the_crop(tokenizer):
    batch = make_batch(_plan("image", ZOOMED), tokenizer, Random(0))
    pads = (batch.ids == tokenizer.token_to_id("<|image_pad|>")).sum(-1)
    assert batch.crops.shape[1:] == (1, CUT, CUT, 3)
    assert (pads == (CUT // 28) ** 2).all()
    assert (batch.ids.gather(2, batch.slots[..., None]) == tokenizer.token_to_id("<|image_pad|>")).all()
    film = make_batch(_plan("video", ZOOMED), tokenizer, Random(0))
    assert film.crops.shape[1:] == (1, 112, 112, 3)


def test_positions_behind_a_crop_are_the_runtimes():
    lead, tail, crop = 4, 20, (2, 3)
    prefix, branch = decoder.positions(lead, (1, 5, 4), tail, 0)
    ours = torch.cat([prefix, decoder.after_crop(branch, 2, *crop)], 1).numpy()
    start = position_after(lead, (1, 10, 8), 2, 0.0)
    second = start + 2
    after = position_after(second, (1, 2 * crop[0], 2 * crop[1]), 2, 0.0)
    theirs = [
        text_positions(0, lead), visual_positions(lead, (1, 10, 8), 2, 0.0), text_positions(start, 2),
        visual_positions(second, (1, 2 * crop[0], 2 * crop[1]), 2, 0.0), text_positions(after, tail - 2 - 6),
    ]  # fmt: skip
    assert np.array_equal(ours, np.concatenate(theirs, 1))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("turn", [PLACE, ZOOMED])
def test_both_passes_learn(tokenizer, kind, turn):
    network = Network(new_model(TINY, tokenizer, 0), tokenizer)
    batch = make_batch(_plan(kind, turn), tokenizer, Random(0))
    places, losses = PlaceHeads(64), []
    optimiser = torch.optim.AdamW([*decoder_weights(network.model), *places.parameters()], lr=3e-3)
    for _ in range(6):
        optimiser.zero_grad()
        loss, _ = zooming(network, places, batch)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
