"""What TensorRT says while it parses and builds, and which of it is a complaint."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Protocol

from ...runtime.engines.tensorrt_library import Library

DROPPED = re.compile(r"unused|ignor|dropp|not used", re.IGNORECASE)
# Told of every int64 input, which ours are; of kernels for convolutions, which ours have none of; of the file's path,
# which may have any word in it.
HARMLESS = re.compile(r"Make sure input .* has Int64 binding|unused tactic source|^Input filename:")
KEPT = re.compile(r"^Layers:|^Total (Activation|Weights) Memory")
"""Of what is said in passing, the lines that `report.py` reads."""


class Journal(Protocol):
    """A logger that remembers."""

    complaints: list[str]
    """Errors and warnings, and whatever speaks of inputs that are not used."""
    errors: list[str]
    kept: list[str]

    def clear(self) -> None:
        """Forget everything so far."""


@cache
def journal(library: Library) -> Journal:
    """The process's one logger for a library: TensorRT keeps the first that it gets and ignores later ones."""
    base: Any = library.api.ILogger
    severity: Any = base.Severity
    bad = (severity.INTERNAL_ERROR, severity.ERROR)

    class Log(base):  # type: ignore[misc]  # untyped
        """Sorts what is said."""

        def __init__(self) -> None:
            super().__init__()
            self.clear()

        def clear(self) -> None:
            self.complaints: list[str] = []
            self.errors: list[str] = []
            self.kept: list[str] = []

        def log(self, level: Any, text: str) -> None:
            if level in bad:
                self.errors.append(text)
            if KEPT.match(text):
                self.kept.append(text)
            elif (level in bad or level == severity.WARNING or DROPPED.search(text)) and not HARMLESS.search(text):
                self.complaints.append(text)

    return Log()
