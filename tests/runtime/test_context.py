"""What does not fit the context is refused with the one setting that takes most, and a value of it that fits."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import make_manifest
from reflectrt.runtime.context import Need, check_media_fit, check_question_fit
from reflectrt.runtime.errors import LimitError, MediaError
from reflectrt.runtime.manifest import Manifest


def manifest(context: int = 1000) -> Manifest:
    made = make_manifest()
    return replace(made, model=replace(made.model, max_context=context))


def film(grids: int, tokens: int) -> Any:
    return SimpleNamespace(
        path=Path("film.mp4"), kind="video", grid=(grids, 2, 2 * tokens), visual_tokens=grids * tokens
    )


def refusal(need: Need, held: int) -> str:
    with pytest.raises(LimitError) as caught:
        check_question_fit(manifest(), "video", held, need)
    return str(caught.value)


@pytest.mark.parametrize(
    ("need", "setting", "least"),
    [
        (Need(question=50, answer=2000), "--max-new-tokens", 1),
        (Need(question=50, steps=5000), "--steps", 0),
        (Need(question=50, steps=4, answer=901), "--max-new-tokens", 1),
    ],
)
def test_the_setting_that_takes_most_is_named_alone_with_a_value_that_just_fits(
    need: Need, setting: str, least: int
) -> None:
    message = refusal(need, held=50)
    found = re.search(rf"pass {setting} (\d+) or less$", message)
    assert found, message
    field = {"--max-new-tokens": "answer", "--steps": "steps"}[setting]
    value = int(found.group(1))
    assert value >= least
    check_question_fit(manifest(), "video", 50, replace(need, **{field: value}))
    with pytest.raises(LimitError):
        check_question_fit(manifest(), "video", 50, replace(need, **{field: value + 1}))


@pytest.mark.parametrize(("kind", "setting"), [("video", "--max-frames"), ("image", "--max-pixels")])
def test_a_medium_that_takes_most_is_to_be_opened_smaller(kind: Any, setting: str) -> None:
    with pytest.raises(LimitError, match=f"open the medium with a smaller {setting}, or export"):
        check_question_fit(manifest(), kind, 980, Need(question=30, steps=4))


def test_a_question_too_long_by_itself_is_to_be_shortened() -> None:
    assert "shorten them, or export with a larger --max-context" in refusal(Need(question=1500), held=10)


def test_a_long_answer_is_named_before_a_short_film() -> None:
    with pytest.raises(LimitError, match=r"^film\.mp4: 2150 tokens .*holds 1000; pass --max-new-tokens 850 or less$"):
        check_media_fit(manifest(), [film(10, 10)], 110, Need(question=40, answer=2000))
    with pytest.raises(LimitError, match=r"pass --max-frames \d+ --max-pixels \d+ or export"):
        check_media_fit(manifest(), [film(100, 64)], 6410, Need(question=40, answer=100))


def test_a_limit_is_no_fault_of_the_file() -> None:
    assert not issubclass(LimitError, MediaError)
