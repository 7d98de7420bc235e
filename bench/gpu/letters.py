"""`python -m reflectrt.bench.gpu.letters GPU CPU`: do two runs of `bench.reflection` choose the same letters? JSON.

Each is a folder of answers, from any machine; questions that only one of them has are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..reflection import read

Line = dict[str, Any]
"""A question's line in the answers."""


@dataclass(frozen=True)
class Letters:
    """Questions that both answered, how often alike, and how often each was right."""

    questions: int
    equal: float
    found_right: float
    wanted_right: float


def letters(found: Iterable[Line], wanted: Iterable[Line]) -> dict[str, Letters]:
    """Agreement of two runs of `bench.reflection` on the questions that both have, cell by cell."""
    others = {line["id"]: line for line in wanted}
    pairs = [(line, others[line["id"]]) for line in found if line["id"] in others]
    cells = [cell for cell in pairs[0][0]["cells"] if cell in pairs[0][1]["cells"]] if pairs else []
    return {cell: _letters(pairs, cell) for cell in cells}


def _letters(pairs: list[tuple[Line, Line]], cell: str) -> Letters:
    options = np.array([(a["cells"][cell]["option"], b["cells"][cell]["option"], a["label"]) for a, b in pairs])
    a, b, label = options.T
    return Letters(len(pairs), float((a == b).mean()), float((a == label).mean()), float((b == label).mean()))


if __name__ == "__main__":
    found, wanted = (read(Path(folder)) for folder in sys.argv[1:])
    print(json.dumps({cell: asdict(agreement) for cell, agreement in letters(found, wanted).items()}, indent=1))
