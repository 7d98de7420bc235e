import pytest
from reflectrt.runtime.errors import UsageError
from reflectrt.runtime.options import AskOptions, MediaOptions, from_names


@pytest.mark.parametrize("name", ["fps", "max_frames", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_budgets_that_show_nothing_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{name} is {value}"):
        MediaOptions(**{name: value})


@pytest.mark.parametrize("name", ["start_s", "end_s"])
def test_times_before_the_beginning_are_refused_by_name(name: str) -> None:
    assert getattr(MediaOptions(**{name: 0.0}), name) == 0.0
    with pytest.raises(UsageError, match=f"^{name} is -1"):
        MediaOptions(**{name: -1.0})


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'stepps'; choose from steps, reflect, .*"):
        from_names(AskOptions, {"stepps": 4})


@pytest.mark.parametrize("values", [{"steps": -1}, {"max_new_tokens": 0}, {"reflect": "sometimes"}])
def test_questions_that_cannot_be_meant_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        from_names(AskOptions, values)
