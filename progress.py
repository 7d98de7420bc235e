"""Progress on stderr: bars on a terminal, nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TextIO

WIDTH = 30


class Bar:
    """One line on a terminal that is written over and over."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label, self._stream = label, stream
        self._shown = -1

    def update(self, done: int, total: int) -> None:
        """So much of it is done."""
        percent = 100 * done // max(1, total)
        if self._stream.isatty() and percent != self._shown:
            filled = WIDTH * percent // 100
            self._stream.write(f"\r{self._label:8} [{'#' * filled}{'.' * (WIDTH - filled)}] {percent:3}%")
            self._stream.flush()
            self._shown = percent

    def clear(self) -> None:
        """Take the line away."""
        if self._shown >= 0:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


@contextmanager
def show_tokens() -> Iterator[Callable[[int, int], None]]:
    """A bar over the visual tokens of the media being read."""
    bar = Bar("reading", sys.stderr)
    try:
        yield bar.update
    finally:
        bar.clear()


class ExportProgress:
    """Stages of an export as lines, the weights of all graphs as one bar."""

    def __init__(self) -> None:
        self._bar = Bar("weights", sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.clear()

    def stage(self, name: str) -> None:
        """A new stage begins."""
        self._bar.clear()
        print(f"{name} ...", file=sys.stderr, flush=True)

    def weights(self, done: int, total: int) -> None:
        """So many of the weights' bytes are written."""
        self._bar.update(done, total)


class CalibrationProgress(ExportProgress):
    """Stages of a calibration as lines, its export's weights and its samples as bars."""

    def __init__(self) -> None:
        super().__init__()
        self._samples = Bar("samples", sys.stderr)

    def stage(self, name: str) -> None:
        """A new stage begins."""
        self._samples.clear()
        super().stage(name)

    def samples(self, done: int, total: int) -> None:
        """So many samples are seen."""
        self._samples.update(done, total)
