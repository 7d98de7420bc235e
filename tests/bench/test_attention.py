"""Attention of the answer position: a distribution over what the position sees, measured on the needle's tokens."""

from itertools import islice

import pytest
import torch
from reflectrt.bench import needle
from reflectrt.bench.attention import Looked, look, summarise
from reflectrt.training.model import SmallModel, new_model
from reflectrt.training.network import Network
from reflectrt.training.tokens import train_tokenizer

TINY = SmallModel(
    hidden=64, layers=2, heads=4, kv_heads=2, mlp=64, vision_hidden=64, vision_depth=1, vision_heads=2, vision_mlp=64,
    full_attention=(0,), mrope_section=(2, 3, 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def item():
    return next(islice((each for each in needle.images(3, 100) if each.size == (1344, 784)), 1))


@pytest.mark.parametrize("steps", [0, 2])
def test_shares_are_of_one_distribution(item, steps):
    tokenizer = train_tokenizer()
    looked = look(Network(new_model(TINY, tokenizer, 0), tokenizer), item, steps)
    assert looked.weights.shape == (1 if steps == 0 else 1 + steps + 1, 2, 4, 28, 48)
    whole = looked.weights.sum((-1, -2))
    assert (whole > 0).all() and (whole < 1).all()
    assert (looked.on_needle() < whole).all()


def test_even_attention_gives_the_needle_its_share_of_tokens(item):
    tokens = 28 * 48
    even = Looked(item, torch.full((1, 1, 1, 28, 48), 1 / tokens))
    assert even.on_needle().item() == pytest.approx(even.even(), rel=1e-5)
    assert summarise([even, even])["share"] == pytest.approx(even.even(), rel=1e-5)
