"""What quantization does to many answers: media shared by questions, and what is made of them."""

import numpy as np
import pytest
from reflectrt.bench.needle.items import groups
from reflectrt.bench.quantized_answers import answers, line, summarise

SURE, CLOSE = [0.9, 0.05, 0.03, 0.02], [0.4, 0.35, 0.15, 0.1]


def _asked(option, scores=SURE, cosine=1.0):
    return {"option": option, "scores": scores, "cosine": [cosine, cosine]}


def _lines():
    """Ten media of four questions; on one of them all four answers flip, and those were close."""
    lines = []
    for number in range(10):
        flips = number == 0
        base = [_asked("A", CLOSE if flips else SURE)] * 4
        ours = [_asked("B" if flips else "A", CLOSE if flips else SURE, 0.9 if flips else 1.0)] * 4
        lines.append({"id": str(number), "labels": ["A"] * 4, "cells": {"float": base, "int8": ours}})
    return lines


def test_agreement_accuracy_and_drift_are_told():
    cell = summarise(_lines())["int8"]
    assert (cell["questions"], cell["media"]) == (40, 10)
    assert cell["agreement"] == cell["accuracy"] == 0.9
    assert cell["accuracy_change"] == pytest.approx(-0.1)
    by_margin = {each["margin_from"]: (each["questions"], each["agreement"]) for each in cell["agreement_by_margin"]}
    assert by_margin == {0.0: (0, None), 0.02: (4, 0.0), 0.1: (0, None), 0.5: (36, 1.0)}
    assert cell["mean_cosine_by_step"] == pytest.approx([0.99, 0.99])
    assert cell["least_cosine_by_step"] == [0.9, 0.9]
    assert cell["kl_of_options"] == 0.0


def test_the_interval_is_of_media_and_so_wider_than_of_questions():
    low, high = summarise(_lines())["int8"]["agreement_interval_95"]
    assert low <= 0.7
    assert high == 1.0


def test_media_are_pictures_and_films_with_many_questions():
    picture, film = groups(3, 2, 20)
    assert len(picture) == 20
    assert len(film) > 10
    assert len({item.question.text for item in picture}) == 20
    assert {item.id for item in film} == {"group-3-1"}


def test_states_become_cosines_with_the_first_bundles():
    (items,) = groups(3, 1, 2)
    states = np.array([[1.0, 0.0], [0.0, 1.0]])
    turned = np.array([[1.0, 0.0], [1.0, 1.0]])
    by_bundle = {
        name: [{"option": "A", "scores": SURE, "states": each}] * 2
        for name, each in {"float": states, "int8": turned}.items()
    }
    assert line(items, by_bundle)["cells"]["int8"][0]["cosine"] == pytest.approx([1.0, 0.5**0.5])


def test_one_opening_serves_all_questions(tmp_path):
    (items,) = groups(3, 1, 3)

    class Model:
        opened = 0

        def open(self, _media):
            self.opened += 1
            return self

        def ask(self, _question, _options):
            return type("Answer", (), {"option": "A", "option_scores": {"A": 1.0}, "reflection": np.ones((4, 8))})

    model = Model()
    assert [found["option"] for found in answers(model, items, tmp_path)] == ["A"] * 3
    assert model.opened == 1
