"""Is a GPU's bundle the CPU's? The same questions to both: letters, reflection states, free text's tokens.

`answers` runs on either machine; its arrays go into one .npz, so that the two need not be the same machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.session import Model
from ..reference_inputs import Medium
from ..synthetic import SyntheticMedia

GRIDS = ((1, 8, 8), (1, 12, 24), (3, 10, 14), (4, 16, 6), (2, 18, 22))
QUESTIONS = ("Which colour is the car?", "How many people cross the street?", "What does the sign say?")
OPTIONS = ("red", "blue", "green", "yellow")
TIE = 0.02
"""Letters may differ where the CPU's two best scores are as near as this."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Agreement:
    """How often the letters are the same (ties apart), how often the text's tokens are, and the worst cosine."""

    questions: int
    letters_equal: float
    letters_equal_or_tied: float
    tokens_equal: float
    score_difference: float
    reflection_cosine: list[float]
    """The lowest of all questions, after each reflection step."""


def media(count: int, seed: int) -> Iterator[Medium]:
    """Pictures and videos of plain patches: a colour each, some noise; the same for the same seed."""
    random = np.random.default_rng(seed)
    for index in range(count):
        grid = GRIDS[index % len(GRIDS)]
        colours = random.integers(0, 256, (grid[0], grid[1] * grid[2], 3, 1))
        noise = random.integers(-20, 21, (grid[0], grid[1] * grid[2], 3, 392))
        patches = np.clip(colours + noise, 0, 255).astype(np.uint8).reshape(grid[0], -1, 1176)
        yield Medium("image" if grid[0] == 1 else "video", patches, grid)


def answers(model: Model, count: int = 100, seed: int = 5, steps: int = 4, text_tokens: int = 8) -> Arrays:
    """Scores [count, options], reflection [count, K, D] and tokens [count, text_tokens] (-1 behind the end)."""
    scores, reflection, tokens = [], [], []
    for index, medium in enumerate(media(count, seed)):
        session = model.open(SyntheticMedia(medium))
        choice = session.ask(QUESTIONS[index % len(QUESTIONS)], OPTIONS, steps=steps)
        scores.append(list((choice.option_scores or {}).values()))
        reflection.append(choice.reflection)
        text = session.ask(QUESTIONS[index % len(QUESTIONS)], steps=0, max_new_tokens=text_tokens).tokens
        tokens.append([*text, *[-1] * text_tokens][:text_tokens])
    return {"scores": np.array(scores), "reflection": np.stack(reflection), "tokens": np.array(tokens)}


def compare(found: Arrays, wanted: Arrays) -> Agreement:
    """The GPU's answers against the CPU's."""
    same = found["scores"].argmax(1) == wanted["scores"].argmax(1)
    best = np.sort(wanted["scores"], axis=1)
    tied = best[:, -1] - best[:, -2] < TIE
    a, b = found["reflection"].astype(np.float64), wanted["reflection"].astype(np.float64)
    cosines = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return Agreement(
        len(same),
        float(same.mean()),
        float((same | tied).mean()),
        float((found["tokens"] == wanted["tokens"]).all(1).mean()),
        float(np.abs(found["scores"] - wanted["scores"]).max()),
        [float(value) for value in cosines.min(0)],
    )
