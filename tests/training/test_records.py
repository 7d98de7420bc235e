"""Records of Visual-CoT and of the authors become batches that training takes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reflectrt.bench.needle import videos, write
from reflectrt.runtime.media import PatchLayout, patchify
from reflectrt.training.losses import Reflecting, answer_only, reflecting
from reflectrt.training.model import SmallModel, load_model, new_model, save_model
from reflectrt.training.network import Network
from reflectrt.training.records import RecordPlan, frames_of, read_records, record_batch
from reflectrt.training.row import IGNORED
from reflectrt.training.stage0 import decoder_weights
from reflectrt.training.tokens import train_tokenizer

TINY = SmallModel(
    hidden=64, layers=2, heads=4, kv_heads=2, mlp=64, vision_hidden=64, vision_depth=2, vision_heads=2, vision_mlp=64,
    full_attention=(1,), mrope_section=(2, 3, 3),
)  # fmt: skip
IMAGE = {"image": "a.png", "dataset": "gqa", "question": "Which?", "answer": "a cat", "bboxs": [[10, 20, 60, 70]]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    media = tmp_path_factory.mktemp("media")
    (media / "gqa").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (224, 280, 3), np.uint8)
    Image.fromarray(pixels).save(media / "gqa" / "a.png")
    write(videos(0, 1), media)
    return media


def _records(folder, *fields):
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in fields))
    return read_records(file, folder)


def _video(folder):
    return {"video": next(folder.glob("*.mp4")).name, "question": "When?", "answer": "B", "temporal_span": [1, 3]}


def test_an_image_record_has_its_box_in_the_slots(folder, tokenizer):
    (record,) = _records(folder, IMAGE)
    batch = record_batch(record, RecordPlan((record,)), tokenizer)
    slots = (batch.ids == tokenizer.token_to_id("<VR>")).sum().item()
    _, _, height, width, _ = batch.crops.shape
    assert batch.pixels.shape == (1, 1, 224, 280, 3)
    assert slots == height // 28 * (width // 28) and 16 <= slots <= 128
    said = tokenizer.decode([label for label in batch.labels.flatten().tolist() if label != IGNORED])
    assert said.strip() == "The answer is: a cat"


def test_several_boxes_are_one_around_all(folder):
    (record,) = _records(folder, {**IMAGE, "bboxs": [[10, 20, 60, 70], [5, 30, 90, 40]]})
    assert record.box == (5, 20, 90, 70)


@pytest.mark.parametrize("method", ["reflecting", "plain"])
def test_both_kinds_train(folder, tokenizer, method):
    network = Network(new_model(TINY, tokenizer, 0), tokenizer)
    optimiser = torch.optim.AdamW(decoder_weights(network.model), lr=3e-3)
    for record in _records(folder, IMAGE, _video(folder)):
        plan = RecordPlan((record,), reflection=method == "reflecting", max_frames=8, frame_pixels=16 * 784)
        batch, losses = record_batch(record, plan, tokenizer), []
        for _ in range(4):
            optimiser.zero_grad()
            how = Reflecting(latent=1.0, rollout=2)
            loss, _ = reflecting(network, batch, how) if method == "reflecting" else answer_only(network, batch)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


def test_batches_are_what_their_number_says(folder, tokenizer):
    plan = RecordPlan(tuple(_records(folder, IMAGE, {**IMAGE, "answer": "a dog"})))
    first, again = plan.batches(tokenizer, 3, 0, 4), plan.batches(tokenizer, 3, 2, 2)
    assert [torch.equal(first[n + 2].ids, again[n].ids) for n in range(2)] == [True, True]


def test_frames_come_back_from_patches():
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)
    patches = np.stack([patchify(frames[n : n + 2], PatchLayout()) for n in (0, 2)])
    assert np.array_equal(frames_of(patches, 4, 6), frames)


@pytest.mark.parametrize(
    "wrong", [{"image": "a.png"}, {**IMAGE, "bboxs": []}, {**IMAGE, "bboxs": [[9, 9, 9, 9]]}, {"question": "?"}, 7]
)
def test_a_line_that_is_no_record_is_named(folder, wrong):
    with pytest.raises(ValueError, match=r"records.jsonl, line 2"):
        _records(folder, IMAGE, wrong)


def test_a_plain_checkpoint_gets_the_reflection_tokens(tokenizer, tmp_path):
    model = new_model(TINY, tokenizer, 0)
    save_model(model, tokenizer, tmp_path)
    file = tmp_path / "tokenizer.json"
    words = json.loads(file.read_text())
    words["added_tokens"] = [
        token for token in words["added_tokens"] if token["content"] not in ("<BOR>", "<VR>", "<EOR>")
    ]
    file.write_text(json.dumps(words))
    model, tokenizer = load_model(tmp_path)
    ids = [tokenizer.token_to_id(name) for name in ("<BOR>", "<VR>", "<EOR>")]
    assert [model.config.vtk_start_id, model.config.vtk_id, model.config.vtk_end_id] == ids
    rows = model.get_input_embeddings().weight
    assert torch.allclose(rows[ids], rows[: ids[0]].mean(0).expand(3, -1), atol=1e-6)
