import pytest
from reflectrt.bench.reference_inputs import user_text
from reflectrt.runtime.errors import UsageError
from reflectrt.runtime.prompt import Question

OPTIONS = ("red", "green", "blue")


def test_images_are_asked_in_the_words_of_the_authors_image_evaluation() -> None:
    assert Question("Which colour?", OPTIONS).prompt("image") == (
        "Which colour?\nOptions:\nA. red\nB. green\nC. blue\nOutput the letter of the correct answer only."
    )


def test_videos_are_asked_in_the_words_of_the_authors_video_evaluation() -> None:
    assert Question("Which colour?", OPTIONS).prompt("video") == (
        "Which colour?\nA. red\nB. green\nC. blue\nAnswer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize("kind", ["image", "video"])
def test_free_text_is_asked_as_it_is(kind: str) -> None:
    assert Question(" What happens?\n").prompt(kind) == " What happens?\n"  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 2, 26])
def test_words_are_the_reference_s(count: int) -> None:
    options = tuple(f"thing {i}" for i in range(count))
    question = Question("Which?", options)
    assert question.prompt("video") == user_text("Which?", options, video=True)
    assert question.prompt("image") == user_text("Which?", options, video=False)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_question_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="question is empty"):
        Question(text)


def test_27_options_are_refused_and_26_are_not() -> None:
    assert Question("Which?", ("x",) * 26).prompt("video").count("\n") == 27
    with pytest.raises(UsageError, match=r"27 options.*at most 26"):
        Question("Which?", ("x",) * 27)


def test_one_option_is_refused() -> None:
    with pytest.raises(UsageError, match="one option"):
        Question("Which?", ("x",))


def test_an_empty_option_is_refused() -> None:
    with pytest.raises(UsageError, match="option is empty"):
        Question("Which?", ("x", " "))


@pytest.mark.parametrize(("text", "options"), [("caf\udce9?", ()), ("Which?", ("a", "\ud800"))])
def test_what_is_no_text_is_refused(text: str, options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="not UTF-8 text"):
        Question(text, options)
