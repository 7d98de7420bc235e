import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reflectrt.bench.gpu import parity, reading, work
from reflectrt.bench.gpu.rival import with_thirds
from reflectrt.bench.gpu.shape import TEXT_7B, VISION_7B
from reflectrt.bench.gpu.table import growth, precisions, table
from reflectrt.bench.gpu.weights import FP8, Blocks, Place, cache_scale, draw, transformers_tensors
from reflectrt.export.lower.cuda_bias import COLUMNS

PRECISIONS = ("bf16", "int8-weights", "fp8", "fp8-fp8-cache", "int4", "int4-int8-cache")
RESULTS = Path(__file__).parents[3] / "bench" / "results"


def place(name: str, *shape: int) -> Place:
    return Place(name, shape, torch.float32, "decoder.onnx.data", 0)


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def test_the_tables_in_the_documents_are_the_results() -> None:
    root = RESULTS.parents[1]
    readme, page = ((root / name).read_text() for name in ("README.md", "docs/cuda.md"))
    assert table(results("gpu_7b_bf16.json")) in readme
    assert table(results("gpu_7b_bf16.json")) in page
    assert growth(results("gpu_7b_bf16.json")) in page
    assert precisions([results(f"gpu_7b_{name}.json") for name in PRECISIONS]) in page
    assert reading.table(results("gpu_reading.json")) in page


def test_work_is_that_of_the_published_sizes() -> None:
    assert work.decoder_weights(TEXT_7B) == 28 * (3584 * 4608 + 3584 * 3584 + 3 * 3584 * 18_944)
    step = work.step(TEXT_7B, context=0)
    assert step.bytes == 2 * work.decoder_weights(TEXT_7B)
    longer = work.step(TEXT_7B, context=1000)
    assert longer.bytes - step.bytes == 1000 * 28 * 2 * 4 * 128 * 2  # keys and values in two bytes
    once, twice = (work.prefill(TEXT_7B, tokens).operations for tokens in (1000, 2000))
    assert twice > 2 * once  # attention grows with the square


def test_grids_do_not_attend_to_each_other() -> None:
    one, many = (work.vision(VISION_7B, grids * 288, 288).operations for grids in (1, 64))
    assert many == pytest.approx(64 * one)


def test_a_name_draws_the_same_weights_always_and_another_name_others() -> None:
    first, again, other = (draw(place(name, 64, 32), "cpu") for name in ("a.weight", "a.weight", "b.weight"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(1 / 8, rel=0.1)  # 1 / sqrt(64)


def test_padding_is_zero_and_is_not_in_the_rival_s_weights() -> None:
    gate = place("model.visual.blocks.0.mlp.gate_proj.weight", 16, 3424)
    values = draw(gate, "cpu")
    assert not values[:, 3420:].any()
    ((name, rival),) = transformers_tensors(gate, values)
    assert (name, rival.shape) == (gate.name, (3420, 16))
    assert torch.equal(rival, values[:, :3420].t())


def test_folded_biases_come_apart_for_the_rival() -> None:
    third = place("model.visual.blocks.0.attn.qkv.1.affine.half", 16 + COLUMNS, 24)
    values = draw(third, "cpu")
    parts = dict(transformers_tensors(third, values))
    stem = "model.visual.blocks.0.attn.qkv.1"
    assert set(parts) == {f"{stem}.weight", f"{stem}.bias"}
    assert torch.equal(parts[f"{stem}.weight"], values[:16].t())
    assert torch.equal(parts[f"{stem}.bias"], values[16])


def test_thirds_of_the_rival_s_tensors_are_views() -> None:
    state = {"a.attn.qkv.weight": torch.zeros(6, 2), "a.norm.weight": torch.zeros(2)}
    found = with_thirds(state)
    assert set(found) == {*(f"a.attn.qkv.{third}.weight" for third in range(3)), "a.norm.weight"}
    found["a.attn.qkv.1.weight"].fill_(1)
    assert state["a.attn.qkv.weight"].sum(1).tolist() == [0, 0, 2, 2, 0, 0]


@pytest.mark.parametrize("bits", [8, 4])
def test_random_numbers_and_scales_make_a_matrix_of_the_usual_deviation(bits: int) -> None:
    inputs = 8 * 32
    packed = Place("a.weight_quantized_packed", (64, 8, 32 * bits // 8), torch.uint8, "decoder.onnx.data", 0)
    numbers = draw(packed, "cpu")
    if bits == 4:
        numbers = torch.stack([numbers & 15, numbers >> 4], -1).flatten(-2)
    scales = Place("a.weight_scale_packed", (64, 8), torch.float32, "decoder.onnx.data", 0, Blocks(bits, 32))
    scale = draw(scales, "cpu")
    weight = (numbers.float() - 2 ** (bits - 1)) * scale[..., None]
    assert float(weight.std()) == pytest.approx(inputs**-0.5, rel=0.1)


def test_random_fp8_numbers_and_scales_make_one_too() -> None:
    weight = draw(Place("a.weight_quantized_packed", (64, 256), torch.float8_e4m3fn, "decoder.onnx.data", 0), "cpu")
    place = Place("a.weight_scale_packed", (64, 2), torch.float32, "decoder.onnx.data", 0, Blocks(FP8, 128))
    values = weight.float().reshape(64, 2, 128) * draw(place, "cpu")[..., None]
    assert float(values.std()) == pytest.approx(256**-0.5, rel=0.1)


def test_packed_projections_come_apart_for_the_rival() -> None:
    packed = place("model.language_model.layers.0.self_attn.q_proj+k_proj+v_proj.weight", 8, 36)
    values = draw(packed, "cpu")
    parts = dict(transformers_tensors(packed, values))
    assert {name.split(".")[-2]: tuple(part.shape) for name, part in parts.items()} == {
        "q_proj": (28, 8),
        "k_proj": (4, 8),
        "v_proj": (4, 8),
    }
    assert torch.equal(torch.cat(list(parts.values())), values.t())


def test_matrices_stored_by_rows_are_drawn_by_their_inputs_and_are_the_rival_s_as_they_are() -> None:
    up = replace(place("model.language_model.layers.0.mlp.up_proj.weight", 32, 64), rows=True)
    values = draw(up, "cpu")
    assert float(values.std()) == pytest.approx(1 / 8, rel=0.1)
    ((name, rival),) = transformers_tensors(up, values)
    assert name == up.name and torch.equal(rival, values)
    packed = replace(place("model.language_model.layers.0.self_attn.q_proj+k_proj+v_proj.weight", 36, 8), rows=True)
    values = draw(packed, "cpu")
    parts = dict(transformers_tensors(packed, values))
    assert [len(part) for part in parts.values()] == [28, 4, 4]
    assert torch.equal(torch.cat(list(parts.values())), values)


def test_scales_of_a_cache_are_not_drawn() -> None:
    scale = replace(place("key_cache.0_scale", 1, 4, 1, 8), value=cache_scale("int8"))
    assert draw(scale, "cpu").unique().tolist() == pytest.approx([5 / 127])


def test_all_models_are_asked_about_a_medium_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(model: Any, item: Any) -> dict[str, Any]:
        asked.append((model, item))
        return {"numbers": item, "scores": [model, item]}

    monkeypatch.setattr(parity, "_answer", answer)
    found = parity.all_answers({"a": 1, "b": 2}, [7, 8])  # type: ignore[dict-item,list-item]  # nothing is run
    assert asked == [(1, 7), (2, 7), (1, 8), (2, 8)]
    assert found["b"]["scores"].tolist() == [[2, 7], [2, 8]] and found["a"]["numbers"].tolist() == [7, 8]
    assert parity.all_answers({"a": 1}, []) == {}  # type: ignore[dict-item]  # a part without questions


def test_agreement_tells_ties_from_differences() -> None:
    reflection = np.random.default_rng(0).normal(size=(3, 2, 8))
    wanted = {
        "scores": np.array([[0.5, 0.49, 0.01], [0.9, 0.05, 0.05], [0.2, 0.7, 0.1]]),
        "reflection": reflection,
        "tokens": np.array([[1, 2], [3, 4], [5, 6]]),
        "digests": np.arange(3),
    }
    found = {
        "scores": np.array([[0.49, 0.5, 0.01], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1]]),
        "reflection": -reflection,
        "tokens": np.array([[1, 2], [3, 4], [5, 7]]),
        "digests": np.arange(3),
    }
    assert parity.compare(wanted, wanted).letters_equal == 1
    agreement = parity.compare(found, wanted)
    assert agreement.letters_equal == pytest.approx(1 / 3)
    assert agreement.letters_equal_or_tied == pytest.approx(2 / 3)
    assert agreement.tokens_equal == pytest.approx(2 / 3)
    assert agreement.reflection_cosine == pytest.approx([-1, -1])
    assert agreement.letters_by_margin == [
        {"margin_from": 0.0, "questions": 1, "equal": 0.0},
        {"margin_from": 0.1, "questions": 2, "equal": 0.5},
    ]
