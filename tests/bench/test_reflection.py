"""The comparison of numbers of reflection steps: what is asked, resumed, and made of the answers."""

import json

import pytest
from reflectrt.bench.reflection import Entry, Part, drop_cut_line, read, summarise


def _line(number, label, **options):
    cells = {name: {"option": option, "forwards": 2, "seconds": 1.0} for name, option in options.items()}
    return {"id": str(number), "label": label, "category": "digit", "cells": cells}


def test_an_entry_names_a_cell_for_each_number_of_steps():
    entry = Entry.parse("mine=some/bundle:0,4")
    assert (entry.name, str(entry.bundle), entry.steps) == ("mine", "some/bundle", (0, 4))
    assert entry.cells() == ["mine K=0", "mine K=4"]


def test_cells_are_held_against_the_last():
    lines = [_line(n, "A", better="A" if n % 4 else "B", plain="A" if n % 2 else "B") for n in range(400)]
    found = summarise(lines)
    assert found["better"]["accuracy"] == 0.75 and found["plain"]["accuracy"] == 0.5
    assert found["better"]["difference"] == pytest.approx(0.25)
    low, high = found["better"]["difference_interval_95"]
    assert 0.19 < low < 0.25 < high < 0.31
    assert found["plain"]["difference_interval_95"] == (0.0, 0.0)


def test_an_entry_without_steps_zooms():
    assert Entry.parse("rival=some/bundle:zoom").cells() == ["rival"]


def test_parts_share_all_questions_out():
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    assert [[part.has(place) for part in parts].count(True) for place in range(10)] == [1] * 10
    assert len({part.lines for part in parts}) == 3


def test_a_line_cut_short_is_asked_again(tmp_path):
    whole, own = json.dumps(_line(1, "A", plain="A")), tmp_path / Part(2, 3).lines
    own.write_text(f'{whole}\n{{"id": "2", "la')
    (tmp_path / Part(1, 3).lines).write_text(json.dumps(_line(3, "A", plain="A")) + "\n")
    drop_cut_line(own)
    assert own.read_text() == f"{whole}\n"
    assert [line["id"] for line in read(tmp_path)] == ["3", "1"]
