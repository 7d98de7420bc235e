from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import BOR, EOR, PROMPT, REFLECTION, STOP, VR, FakeEngine, make_manifest
from reflectrt.runtime.clock import Clock
from reflectrt.runtime.errors import NumericError
from reflectrt.runtime.generate import Choice, Plan, Token, answer_choice, answer_freely
from reflectrt.runtime.sampling import Sampler, Sampling
from reflectrt.runtime.stream import Stream

QUESTION = [20, 21, 22]
PREFIX = list(PROMPT.answer_prefix)


def make_plan(**changes: Any) -> Plan:
    return replace(Plan(REFLECTION, steps=3, forced=True, max_new_tokens=20), **changes)


def start(engine: FakeEngine, fed: Sequence[int] = (1, 2)) -> Stream:
    """A stream behind some prefix; its decoder runs are not counted."""
    stream = Stream(engine, make_manifest(), 100)
    stream.feed_tokens(fed)
    stream.runs = 0
    engine.runs.clear()
    return stream


def choose(engine: FakeEngine, options: int = 4, **changes: Any) -> tuple[Choice, Stream]:
    stream = start(engine)
    return answer_choice(stream, QUESTION, options, make_plan(**changes), Clock()), stream


def write(engine: FakeEngine, **changes: Any) -> list[Token]:
    plan = make_plan(**changes)
    return list(answer_freely(start(engine), QUESTION, plan, Sampler(Sampling()), Clock()))


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def fed(engine: FakeEngine) -> list[list[int]]:
    """What went into each decoder run, as the first values of its embeddings: token ids."""
    return [run["embeddings"][0, :, 0].astype(int).tolist() for run in engine.of("decoder")]


# Multiple choice


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_multiple_choice_takes_k_plus_2_decoder_runs_and_one_of_the_head(steps: int) -> None:
    engine = FakeEngine()
    choice, stream = choose(engine, steps=steps)
    assert stream.runs == len(engine.of("decoder")) == steps + 2
    assert len(engine.of("head")) == 1
    assert len(choice.reflection) == steps


def test_what_is_forced_goes_in_together() -> None:
    engine = FakeEngine()
    choose(engine)
    assert fed(engine) == [[*QUESTION, BOR], [BOR], [BOR], [BOR], [EOR, *PREFIX]]


def test_a_reflection_step_feeds_the_hidden_state_back() -> None:
    engine = FakeEngine()
    choice, _ = choose(engine)
    # The fake decoder counts: the state after <BOR> has 1, each step one more.
    assert [run["embeddings"][0, 0].tolist() for run in engine.of("decoder")[1:4]] == [
        [BOR, 1, 0, 0],
        [BOR, 2, 0, 0],
        [BOR, 3, 0, 0],
    ]
    assert np.stack(choice.reflection).tolist() == [[BOR, 2, 0, 0], [BOR, 3, 0, 0], [BOR, 4, 0, 0]]


def test_a_reflection_head_stands_between_state_and_embedding() -> None:
    engine = FakeEngine()
    reflection = replace(REFLECTION, head="linear")
    stream = Stream(engine, make_manifest(reflection), 100)
    choice = answer_choice(stream, QUESTION, 4, make_plan(reflection=reflection, steps=2), Clock())
    assert len(engine.of("reflect")) == 2
    # The fake head adds to the third value; what is handed out is the decoder's state, not the head's.
    assert np.stack(choice.reflection).tolist() == [[BOR, 2, 1, 0], [BOR, 3, 2, 0]]


def test_positions_and_rows_go_on_by_one_a_step() -> None:
    engine = FakeEngine()
    choose(engine)
    runs = engine.of("decoder")
    positions = np.concatenate([run["positions"] for run in runs], axis=1)
    assert positions.tolist() == [list(range(2, 2 + 4 + 3 + 4))] * 3
    assert [int(run["past_length"][0]) for run in runs] == [2, 6, 7, 8, 9]


@pytest.mark.parametrize("wanted", range(4))
def test_the_best_letter_wins_with_its_probability(wanted: int) -> None:
    choice, _ = choose(FakeEngine({PREFIX[-1]: PROMPT.letters[wanted]}))
    assert choice.option == wanted
    shares = np.exp([5.0 if i == wanted else 0.0 for i in range(4)])
    np.testing.assert_allclose(choice.scores, shares / shares.sum(), rtol=1e-6)
    assert choice.tokens == (BOR, VR, VR, VR, EOR, *PREFIX, PROMPT.letters[wanted])


def test_letters_beyond_the_options_do_not_count() -> None:
    choice, _ = choose(FakeEngine({PREFIX[-1]: PROMPT.letters[3]}), options=2)
    assert choice.option == 0
    assert choice.scores.tolist() == [0.5, 0.5]


def test_26_options_have_26_scores() -> None:
    choice, _ = choose(FakeEngine({PREFIX[-1]: PROMPT.letters[25]}), options=26)
    assert (choice.option, len(choice.scores)) == (25, 26)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"reflection": None}], ids=["K=0", "plain"])
def test_without_reflection_none_of_its_tokens_is_fed(changes: dict[str, Any]) -> None:
    engine = FakeEngine()
    choice, _ = choose(engine, **changes)
    assert fed(engine) == [QUESTION, PREFIX]
    assert choice.tokens == (*PREFIX, PROMPT.letters[0])
    assert choice.reflection == ()


# Free text


def test_free_text_ends_with_a_stop_token() -> None:
    engine = FakeEngine({22: 30, 30: 31, 31: STOP})
    assert ids(write(engine, forced=False)) == [30, 31, STOP]
    assert fed(engine) == [QUESTION, [30], [31]]


@pytest.mark.parametrize("stop", PROMPT.stop)
def test_every_stop_token_stops(stop: int) -> None:
    assert ids(write(FakeEngine({22: stop}), forced=False)) == [stop]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_free_text_ends_after_max_new_tokens_and_feeds_no_more(limit: int) -> None:
    engine = FakeEngine({22: 30, 30: 30})
    assert ids(write(engine, forced=False, max_new_tokens=limit)) == [30] * limit
    assert len(fed(engine)) == limit


def test_a_forced_window_opens_with_the_question_and_does_not_count() -> None:
    engine = FakeEngine({EOR: 30, 30: 30})
    tokens = write(engine, max_new_tokens=2)
    assert ids(tokens) == [BOR, VR, VR, VR, EOR, 30, 30]
    assert fed(engine) == [[*QUESTION, BOR], [BOR], [BOR], [BOR], [EOR], [30]]
    assert [token.hidden is not None for token in tokens] == [False, True, True, True, False, False, False]


def test_the_model_opens_windows_itself_and_more_than_one() -> None:
    engine = FakeEngine({22: 30, 30: BOR, EOR: 31, 31: 32, 32: STOP})
    assert ids(write(engine, forced=False, steps=2)) == [30, BOR, VR, VR, EOR, 31, 32, STOP]
    again = FakeEngine({22: BOR, EOR: 33, 33: BOR})
    tokens = write(again, forced=False, steps=2, max_new_tokens=4)
    window = [BOR, VR, VR, EOR]
    assert ids(tokens) == [*window, 33, *window, 33]
    states = [token.hidden.tolist() for token in tokens if token.hidden is not None]
    assert states == [[BOR, 2, 0, 0], [BOR, 3, 0, 0]] * 2


def test_a_window_that_the_last_token_would_open_stays_shut() -> None:
    engine = FakeEngine({22: BOR})
    assert ids(write(engine, forced=False, max_new_tokens=1)) == [BOR]
    assert fed(engine) == [QUESTION]


@pytest.mark.parametrize("token", [BOR, VR, EOR])
def test_in_the_baseline_reflection_tokens_never_come(token: int) -> None:
    tokens = write(FakeEngine({22: token, 0: STOP}), steps=0)
    assert ids(tokens) == [0, STOP]  # the likeliest of the rest, and on from there


def test_a_plain_model_writes_what_it_likes() -> None:
    tokens = write(FakeEngine({22: BOR, BOR: STOP}), reflection=None, steps=0)
    assert ids(tokens) == [BOR, STOP]
    assert all(token.hidden is None for token in tokens)


def test_tokens_come_as_they_are_made() -> None:
    engine = FakeEngine({22: 30, 30: 31, 31: STOP})
    stream = start(engine)
    tokens = answer_freely(stream, QUESTION, make_plan(forced=False), Sampler(Sampling()), Clock())
    assert next(tokens).id == 30
    assert stream.runs == 1
    assert next(tokens).id == 31
    assert stream.runs == 2


def test_sampling_follows_its_seed() -> None:
    def sampled(seed: int) -> list[int]:
        stream, sampler = start(FakeEngine({})), Sampler(Sampling(2.0, seed=seed))
        plan = make_plan(forced=False, max_new_tokens=30)
        return ids(list(answer_freely(stream, QUESTION, plan, sampler, Clock())))

    assert sampled(1) == sampled(1) != sampled(2)


# Numbers that are none


@pytest.mark.parametrize(("graph", "stage"), [("head", "head"), ("decoder", "reflection")])
def test_nan_stops_with_the_stage_s_name(graph: str, stage: str) -> None:
    with pytest.raises(NumericError, match=f"{stage} gave NaN"):
        write(FakeEngine(broken=graph))


@pytest.mark.parametrize(("graph", "stage"), [("head", "head"), ("decoder", "reflection")])
def test_nan_in_multiple_choice_stops_with_the_stage_s_name(graph: str, stage: str) -> None:
    with pytest.raises(NumericError, match=f"{stage} gave NaN"):
        choose(FakeEngine(broken=graph))


def test_infinity_is_no_number_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "logits", lambda *_: np.array([0.0, np.inf], np.float32))
    with pytest.raises(NumericError):
        write(FakeEngine(), forced=False)


def test_stages_are_timed() -> None:
    clock = Clock()
    answer_choice(start(FakeEngine()), QUESTION, 4, make_plan(), clock)
    timings = clock.timings()
    assert timings["read"] == timings["vision"] == 0
    assert min(timings["prefill"], timings["reflect"], timings["decode"]) > 0
    assert sum(timings.values()) - timings["total"] <= timings["total"]
