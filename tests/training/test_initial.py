"""The initial look-up circuit: heads look back where they should, and find an option by its word."""

from dataclasses import replace

import pytest
import torch
from reflectrt.training import decoder
from reflectrt.training.model import SmallModel, new_model
from reflectrt.training.prompt import asked, lettered
from reflectrt.training.tokens import train_tokenizer
from reflectrt.training.vision import rms_norm

SIZES = replace(SmallModel(), layers=4, vision_depth=1, full_attention=(0,))
OPTIONS = [("A", "purple"), ("B", "red"), ("C", "yellow"), ("D", "orange")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def language(tokenizer):
    return new_model(SIZES, tokenizer, 0).model.language_model


def attention(language, ids):
    """Weights [heads, T] of the last token's query, layer by layer."""
    table = decoder.rotary(language, torch.arange(len(ids)).expand(3, -1))
    x, weights = language.embed_tokens(torch.tensor([ids])), []
    with torch.no_grad():
        for layer in language.layers:
            attn, h = layer.self_attn, rms_norm(layer.input_layernorm, x)
            keys, _ = decoder.keys_values(attn, h, table)
            queries = decoder.queries(attn, h, table.cos, table.sin)
            scores = queries[0, :, -1:] @ keys[0].repeat_interleave(attn.num_key_value_groups, 0).transpose(-1, -2)
            weights.append((scores[:, 0] * attn.head_dim**-0.5).softmax(-1))
            x, _, _ = decoder.run_prefix_layer(layer, x, table.cos, table.sin)
    return weights


def test_first_layer_looks_back_by_its_offsets(language, tokenizer):
    ids = tokenizer.encode("one two three four five six").ids
    first = attention(language, ids)[0]
    assert (len(ids) - 1 - first.argmax(-1)).tolist() == [1, 2, 1, 3]
    assert first.max(-1).values.min() > 0.8


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("said", range(4))
def test_a_matching_head_finds_the_option_whose_word_was_said(language, tokenizer, kind, said):
    word = OPTIONS[said][1]
    ids = tokenizer.encode(asked(lettered("Recall.", OPTIONS, kind)) + f" {word}:").ids
    places = [ids.index(tokenizer.token_to_id(f"Ġ{option}")) for _, option in OPTIONS]
    among = attention(language, ids)[1][0, places]
    assert among.argmax().item() == said
