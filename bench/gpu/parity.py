"""Is a GPU's bundle the CPU's? The same questions to both: letters, reflection states, free text's tokens.

    python -m reflectrt.bench.gpu.parity ask FOLDER bf16=BUNDLE fp8=BUNDLE --limit 500 [--part 1/8]  # on either machine
    python -m reflectrt.bench.gpu.parity compare FOLDER/bf16 CPU_FOLDER/fp32                         # prints JSON

Questions are needle questions, every other one about a film, which all bundles are asked before the next is made.
Answers go into files, so that the machines need not be the same, nor the processes that share the questions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime import load
from ...runtime.session import Model, Session
from ..evaluate import GENERATORS
from ..needle.write import write_media
from ..reference_inputs import Medium
from ..reflection import Part
from ..synthetic import SyntheticMedia

GRIDS = ((1, 8, 8), (1, 12, 24), (3, 10, 14), (4, 16, 6), (2, 18, 22))
QUESTIONS = ("Which colour is the car?", "How many people cross the street?", "What does the sign say?")
OPTIONS = ("red", "blue", "green", "yellow")
STEPS, TEXT_TOKENS = 4, 8
WHOLE = Part()
TIE = 0.02
"""Letters may differ where the CPU's two best scores are as near as this."""

MARGINS = (0.0, TIE, 0.1)
"""Lower ends of the classes of questions by the CPU's margin."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """A question about a medium; `digest` tells whether two machines made the same one."""

    open: Callable[[Model], Session]
    question: str
    options: tuple[str, ...]
    digest: int
    number: int


@dataclass(frozen=True)
class Agreement:
    """How often the letters are the same (ties apart), how often the text's tokens are, and the worst cosine."""

    questions: int
    media_equal: float
    letters_equal: float
    letters_equal_or_tied: float
    tokens_equal: float
    score_difference: float
    reflection_cosine: list[float]
    """The lowest of all questions, after each reflection step."""
    reflection_cosine_median: list[float]
    letters_by_margin: list[dict[str, float]]


def media(count: int, seed: int) -> Iterator[Medium]:
    """Pictures and videos of plain patches: a colour each, some noise; the same for the same seed."""
    random = np.random.default_rng(seed)
    for index in range(count):
        grid = GRIDS[index % len(GRIDS)]
        colours = random.integers(0, 256, (grid[0], grid[1] * grid[2], 3, 1))
        noise = random.integers(-20, 21, (grid[0], grid[1] * grid[2], 3, 392))
        patches = np.clip(colours + noise, 0, 255).astype(np.uint8).reshape(grid[0], -1, 1176)
        yield Medium("image" if grid[0] == 1 else "video", patches, grid)


def colours(count: int = 100, seed: int = 5) -> Iterator[Asked]:
    """Questions that need no files, for random checkpoints."""
    for index, medium in enumerate(media(count, seed)):
        digest, question = zlib.crc32(medium.patches.tobytes()), QUESTIONS[index % len(QUESTIONS)]
        yield Asked(_opener(SyntheticMedia(medium)), question, OPTIONS, digest, index)


def needles(count: int, seed: int, folder: Path, part: Part = WHOLE) -> Iterator[Asked]:
    """Needle questions about pictures and films in turn; a file under `folder` lives until the next question."""
    tasks = [GENERATORS[task](seed, -(-count // len(GENERATORS))) for task in sorted(GENERATORS)]
    for index in range(count):
        item = next(tasks[index % len(tasks)])
        if part.has(index):
            file = write_media(item, folder)
            digest, question = zlib.crc32(file.read_bytes()), item.question
            yield Asked(_opener(str(file)), question.text, question.options, digest, index)
            file.unlink()


def _opener(source: str | SyntheticMedia) -> Callable[[Model], Session]:
    return lambda model: model.open(source)


def answers(model: Model, asked: Iterable[Asked]) -> Arrays:
    """What `all_answers` has of one model."""
    return all_answers({"": model}, asked)[""]


def all_answers(models: Mapping[str, Model], asked: Iterable[Asked]) -> dict[str, Arrays]:
    """Of each model scores [count, options], reflection [count, K, D], tokens [count, TEXT_TOKENS] (-1 behind the end),
    digests and numbers [count]."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for item in asked:
        for name, model in models.items():
            rows[name].append(_answer(model, item))
    return {
        name: {key: np.array([row[key] for row in found]) for key in found[0]} for name, found in rows.items() if found
    }


def _answer(model: Model, item: Asked) -> dict[str, Any]:
    session = item.open(model)
    choice = session.ask(item.question, item.options, steps=STEPS)
    text = session.ask(item.question, steps=0, max_new_tokens=TEXT_TOKENS).tokens
    return {
        "scores": list((choice.option_scores or {}).values()),
        "reflection": choice.reflection,
        "tokens": [*text, *[-1] * TEXT_TOKENS][:TEXT_TOKENS],
        "digests": item.digest,
        "numbers": item.number,
    }


def compare(found: Arrays, wanted: Arrays) -> Agreement:
    """The GPU's answers against the CPU's."""
    same = found["scores"].argmax(1) == wanted["scores"].argmax(1)
    best = np.sort(wanted["scores"], axis=1)
    margin = best[:, -1] - best[:, -2]
    tied = margin < TIE
    a, b = found["reflection"].astype(np.float64), wanted["reflection"].astype(np.float64)
    cosines = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return Agreement(
        len(same),
        float((found["digests"] == wanted["digests"]).mean()),
        float(same.mean()),
        float((same | tied).mean()),
        float((found["tokens"] == wanted["tokens"]).all(1).mean()),
        float(np.abs(found["scores"] - wanted["scores"]).max()),
        [float(value) for value in cosines.min(0)],
        [float(value) for value in np.median(cosines, 0)],
        list(_by_margin(same, margin)),
    )


def _by_margin(same: NDArray[np.bool_], margin: NDArray[Any]) -> Iterator[dict[str, float]]:
    for low, high in zip(MARGINS, (*MARGINS[1:], np.inf), strict=True):
        chosen = same[(low <= margin) & (margin < high)]
        if len(chosen):
            yield {"margin_from": low, "questions": len(chosen), "equal": float(chosen.mean())}


def main() -> None:
    """Ask, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask")
    ask.add_argument("folder", type=Path)
    ask.add_argument("bundles", nargs="+", help="name=folder")
    ask.add_argument("--limit", type=int, default=500)
    ask.add_argument("--seed", type=int, default=11)
    ask.add_argument("--part", type=Part.parse, default=WHOLE, help="2/8: the second of eight processes")
    ask.add_argument("--threads", type=int, default=None, help="of a CPU bundle")
    both = commands.add_parser("compare")
    both.add_argument("found", type=Path)
    both.add_argument("wanted", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        agreement = compare(read(options.found), read(options.wanted))
        print(json.dumps(asdict(agreement), indent=1))
        return
    pairs = (each.partition("=") for each in options.bundles)
    models = {name: load(bundle, threads=options.threads) for name, _, bundle in pairs}
    with tempfile.TemporaryDirectory() as scratch:
        found = all_answers(models, needles(options.limit, options.seed, Path(scratch), options.part))
    for name, arrays in found.items():
        (options.folder / name).mkdir(parents=True, exist_ok=True)
        np.savez(options.folder / name / f"part-{options.part.number}.npz", **arrays)  # type: ignore[arg-type]  # no flag


def read(folder: Path) -> Arrays:
    """The answers of all parts, in the questions' order."""
    parts = [dict(np.load(file)) for file in sorted(folder.glob("part-*.npz"))]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = whole["numbers"].argsort()
    return {name: values[order] for name, values in whole.items()}


if __name__ == "__main__":
    main()
