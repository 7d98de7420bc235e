import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reflectrt.export.recipe import (
    FORMAT,
    Fold,
    GraphRecipe,
    KVCacheRecipe,
    LinearRecipe,
    Origin,
    Recipe,
    dump,
    parse,
    read_recipe,
)
from reflectrt.runtime.errors import ExportError

FULL = Recipe(
    FORMAT,
    (1, 0),
    "ab" * 32,
    "int8",
    {
        "vision": GraphRecipe({"v.weight": LinearRecipe("int8", 0.25)}),
        "decoder": GraphRecipe({"d.weight": LinearRecipe("int4-weights", block=32)}),
    },
    (Fold("norm.weight", 0, ("d.weight",), 2, 1, (0.5, 2.0)),),
    KVCacheRecipe("int8", ((0.1, 0.2),), ((0.3, 0.4),)),
    Origin(
        "percentile",
        0.5,
        128,
        "cd" * 32,
        ("*.down_proj",),
        {"d.weight": 1e-5},
        ("e.weight",),
        {"reflectrt": "0.1"},
        {"decoder from hidden": 128},
    ),
)


def test_what_is_dumped_is_parsed_back() -> None:
    assert parse(dump(FULL)) == FULL


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Change, str]] = {
    "another format": (lambda d: d.update(format="x"), '"format": "reflectrt-recipe"'),
    "a newer format": (lambda d: d.update(version=[2, 0]), "version is .2, 0., this ReflectRT reads 1.x"),
    "an unknown scheme": (lambda d: d["graphs"]["vision"]["linears"]["v.weight"].update(scheme="int3"), "scheme"),
    "a missing field": (lambda d: d.pop("folds"), "recipe.folds is missing"),
    "no range": (lambda d: d["graphs"]["vision"]["linears"]["v.weight"].update(input_scale=None), "with input_scale"),
    "a range of zero": (lambda d: d["graphs"]["vision"]["linears"]["v.weight"].update(input_scale=0), "not above 0"),
    "a block of 7": (lambda d: d["graphs"]["decoder"]["linears"]["d.weight"].update(block=7), "block is 7"),
    "a negative factor": (lambda d: d["folds"][0].update(factors=[1.0, -1.0]), "norm.weight.*not above 0"),
    "odd factors": (lambda d: d["folds"][0].update(factors=[1.0]), "1 factors do not divide into blocks of 2"),
    "a cache scale of zero": (lambda d: d["kv_cache"].update(key_scales=[[0.0]]), "kv_cache has scales"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    data = json.loads(dump(FULL))
    change(data)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ExportError, match=message) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', "\udcff"])
def test_what_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ExportError):
        read_recipe(file)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.json cannot be read"):
        read_recipe(tmp_path / "none.json")


def test_the_summary_has_no_long_vectors() -> None:
    summary = FULL.summary()
    assert summary["graphs"]["vision"]["schemes"] == {"int8": 1}
    assert summary["folds"] == 1
    assert "factors" not in json.dumps(summary)
