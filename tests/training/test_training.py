"""Training on a very small model: fast forwards equal transformers', losses and loop do what they say."""

from dataclasses import replace
from random import Random

import pytest
import torch
from reflectrt.training import decoder, vision
from reflectrt.training.dense import DenseHeads
from reflectrt.training.drill import drill_row
from reflectrt.training.loop import Phase, Schedule, train
from reflectrt.training.losses import Reflecting, answer_only, reflecting, see_and_answer
from reflectrt.training.model import CLIP_MEAN, CLIP_STD, SmallModel, load_model, new_model, save_model
from reflectrt.training.network import Network, put, take
from reflectrt.training.row import IGNORED
from reflectrt.training.scenes import Plan, make_batch
from reflectrt.training.stage0 import decoder_weights
from reflectrt.training.tokens import train_tokenizer

TINY = SmallModel(
    hidden=64, layers=2, heads=4, kv_heads=2, mlp=64, vision_hidden=64, vision_depth=2, vision_heads=2, vision_mlp=64,
    full_attention=(1,), mrope_section=(2, 3, 3),
)  # fmt: skip
IMAGES = Plan("image", ((224, 224),), 1, 2, cells=(3, 4), reflection=4)
VIDEOS = Plan("video", ((112, 112),), 1, 2, (16,), reflection=4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def network(tokenizer):
    return Network(new_model(TINY, tokenizer, 0), tokenizer)


@pytest.mark.parametrize(("height", "width", "frames"), [(224, 224, 1), (252, 140, 2), (112, 308, 1)])
def test_vision_equals_transformers(network, height, width, frames):
    visual = network.model.model.visual
    pixels = torch.randint(0, 256, (2, frames, height, width, 3), dtype=torch.uint8)
    layout = vision.windows(visual, height, width, torch.device("cpu"))
    scaled = (pixels.float() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    if frames == 1:
        scaled = scaled.repeat(1, 2, 1, 1, 1)
    cut = scaled.view(2, 2, height // 28, 2, 14, width // 28, 2, 14, 3)
    flat = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 1176)
    with torch.no_grad():
        ours = vision.encode(visual, pixels, layout).flatten(0, 1)
        theirs = visual(flat, torch.tensor([[1, height // 14, width // 14]] * 2)).pooler_output
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_branches_equal_transformers_one_by_one(network):
    language, lead, tail = network.model.model.language_model, 5, 7
    prefix, branch = decoder.positions(lead, (3, 2, 4), tail, 2)
    seen, asked = torch.randn(1, prefix.shape[1], 64), torch.randn(1, 3, tail, 64)
    mask = decoder.branch_mask(prefix.shape[1], 3, tail, torch.device("cpu"))
    with torch.no_grad():
        cache, _ = decoder.prefill(language, seen, decoder.rotary(language, prefix))
        ours, _ = decoder.run_branches(language, asked, cache, decoder.rotary(language, branch), mask)
        for number in range(3):
            theirs = language(
                inputs_embeds=torch.cat([seen, asked[:, number]], 1),
                position_ids=torch.cat([prefix, branch], 1)[:, None],
                use_cache=False,
            ).last_hidden_state[:, prefix.shape[1] :]
            assert torch.allclose(ours[:, number], theirs, atol=1e-5)


def test_text_goes_on_after_the_greatest_position_of_any_axis():
    prefix, branch = decoder.positions(4, (10, 2, 3), 2, 2)
    assert prefix[:, 4].tolist() == [4, 4, 4]
    assert prefix[:, -1].tolist() == [4 + 18, 5, 6]
    assert branch[:, 0].tolist() == [23, 23, 23]


def test_a_batch_is_what_its_number_says(tokenizer):
    first, again = (make_batch(IMAGES, tokenizer, Random("x")) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.ids, again.ids)
    token = tokenizer.token_to_id
    assert (take(first.ids[..., None], first.slots, 4)[..., 0] == token("<VR>")).all()
    assert (take(first.ids[..., None], first.colon, 1) == token(":")).all()
    assert not (first.labels == token("<VR>")).any()
    assert (first.labels[..., 0] == IGNORED).all()


def test_drills_ask_for_letters_that_stand_beside_the_words(tokenizer):
    row = drill_row(tokenizer, Random(0), "image")
    said = tokenizer.decode(row.ids, skip_special_tokens=False)
    letters = [tokenizer.decode([label]).strip() for label in row.labels if label != IGNORED]
    recalls = said.split("assistant\n")[1].rstrip().split("\n")
    recalls = [line.strip() for line in recalls]
    assert [line.split(": ")[1] for line in recalls] == letters
    assert all(f"{line.split(': ')[1]}. {line.split(': ')[0]}\n" in said for line in recalls)


def _weights(model, part):
    return {name: value.clone() for name, value in model.state_dict().items() if part in name}


@pytest.mark.parametrize("plan", [IMAGES, VIDEOS])
def test_stage_0_learns(network, plan, tokenizer):
    heads = DenseHeads(64)
    batch = make_batch(plan, tokenizer, Random(0))
    first = see_and_answer(network, heads, batch, 1.0)[0].item()
    weights = [*network.model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=3e-3)
    for _ in range(8):
        optimiser.zero_grad()
        loss, _ = see_and_answer(network, heads, batch, 1.0)
        loss.backward()
        optimiser.step()
    assert see_and_answer(network, heads, batch, 1.0)[0].item() < 0.8 * first


def test_reflection_learns_and_leaves_vision_alone(network, tokenizer):
    batch = make_batch(IMAGES, tokenizer, Random(0))
    how = Reflecting(align=0.1, teacher=1.0, latent=1.0, rollout=1)
    before = _weights(network.model, "visual")
    weights = decoder_weights(network.model)
    optimiser = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss, parts = reflecting(network, batch, how)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert set(parts) == {"align", "ce", "latent", "right"}
    after = _weights(network.model, "visual")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rollout_fills_slots_as_inference_does(network, tokenizer):
    batch = make_batch(IMAGES, tokenizer, Random(1))
    with torch.no_grad():
        prefix = network.prefill(batch, network.see(batch.pixels))
        embeds = network.embed(batch.ids)
        filled = network.reflect(embeds, batch.slots, prefix, 4)
        hidden = network.branches(filled, prefix)
    assert torch.allclose(take(filled, batch.slots, 4), take(hidden, batch.slots - 1, 4), atol=1e-5)
    assert torch.equal(put(filled, batch.slots, take(embeds, batch.slots, 4)), embeds)


def test_resumed_training_ends_at_the_same_weights(tokenizer, tmp_path):
    plan = replace(IMAGES, questions=1, reflection=0)

    def run(parts):
        network, state = Network(new_model(TINY, tokenizer, 0), tokenizer), None
        weights = decoder_weights(network.model)
        for steps in parts:
            schedule = Schedule((Phase(steps, (plan,)),), 1e-3, warmup=1, floor=1.0)
            state = train(weights, lambda b: answer_only(network, b), schedule, tokenizer, tmp_path, state)
        return network.model.state_dict()

    whole, resumed = run([3]), run([1, 3])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoint_comes_back(network, tokenizer, tmp_path):
    save_model(network.model, tokenizer, tmp_path)
    model, again = load_model(tmp_path)
    assert model.config.vtk_id == again.token_to_id("<VR>")
    theirs, ours = model.state_dict(), network.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name].bfloat16().float()) for name in ours)
    assert (tmp_path / "preprocessor_config.json").exists()
