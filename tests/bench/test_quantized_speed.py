from collections import Counter

import numpy as np
from reflectrt.bench.quantized_speed import STEPS_A_ROUND, ratios, time_all


class Counting:
    """A subject that only counts what is asked of it."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, Counter[str]()

    def prefill(self, embeddings: np.ndarray) -> None:
        self.calls["prefill", embeddings.shape[1]] += 1

    def fill(self, embeddings: np.ndarray, context: int) -> None:
        self.calls["fill", embeddings.shape[1], context] += 1

    def step(self) -> None:
        self.calls["step"] += 1


def test_subjects_take_turns_at_the_same_work() -> None:
    subjects = [Counting("float32"), Counting("int8")]
    times = time_all(subjects, rounds=3)
    wanted = {("prefill", 1024): 3, ("fill", 1024, 2047): 1, "step": 6 * (STEPS_A_ROUND + 1)}
    assert [dict(subject.calls) for subject in subjects] == [wanted, wanted]
    assert set(times) == {"float32", "int8"} and set(times["int8"]) == {"prefill_ms", "step_ms"}


def test_ratios_are_against_our_float32_and_the_faster_rival() -> None:
    times = {
        "float32": {"prefill_ms": 30.0, "step_ms": 9.0},
        "int8": {"prefill_ms": 10.0, "step_ms": 3.0},
        "torch float32": {"prefill_ms": 40.0, "step_ms": 12.0},
        "torch bfloat16": {"prefill_ms": 20.0, "step_ms": 24.0},
    }
    assert ratios(times) == {
        "int8 prefill": {"against our float32": 3.0, "against PyTorch": 2.0},
        "int8 step": {"against our float32": 3.0, "against PyTorch": 4.0},
    }
