"""Questions about media files, as `samples.jsonl` holds them: what to calibrate on and to evaluate with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError

SAMPLES = "samples.jsonl"
DESCRIBE = "Describe what can be seen here."


@dataclass(frozen=True)
class Sample:
    """One question about media files; `label` is the right option's letter, empty where none is known."""

    id: str
    media: tuple[Path, ...]
    question: str
    options: tuple[str, ...]
    label: str
    category: str


def read_samples(folder: Path) -> list[Sample]:
    """The questions of a folder's samples.jsonl. Raises UsageError, which names the line."""
    file = folder / SAMPLES
    if not file.is_file():
        raise UsageError(f"{folder} has no {SAMPLES}; write one with `reflectrt evaluate ... --write-media`")
    return read_lines(file)


def read_lines(file: Path) -> list[Sample]:
    """The questions of a JSON-lines file; media paths are relative to its folder. Raises UsageError."""
    samples = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    for number, text in enumerate(lines, 1):
        try:
            samples.append(parse_sample(json.loads(text), file.parent))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file}, line {number}: {type(error).__name__} {error}; mend or remove it") from None
    if not samples:
        raise UsageError(f"{file} has no questions; add a line for each")
    return samples


def parse_sample(line: dict[str, Any], folder: Path) -> Sample:
    """A samples.jsonl line: media (paths relative to `folder`), question, options, label."""
    media = [line["media"]] if isinstance(line["media"], str) else line["media"]
    return Sample(
        id=str(line.get("id", media[0])),
        media=tuple(folder / name for name in media),
        question=str(line["question"]),
        options=tuple(map(str, line["options"])),
        label=str(line["label"]),
        category=str(line.get("category", "all")),
    )


def gather_samples(source: Path) -> list[Sample]:
    """The questions of a samples.jsonl, of every one in a folder and below (in turns, so that the first N are of all),
    or each medium of a folder without any, to be described. Raises UsageError."""
    if source.is_file():
        return read_lines(source)
    if not source.is_dir():
        raise UsageError(f"{source} is not there; give a {SAMPLES} or a folder of media")
    lists = [read_lines(file) for file in sorted(source.rglob(SAMPLES))]
    if not lists:
        return media_samples(source)
    return [sample for turn in zip_longest(*lists) for sample in turn if sample is not None]


def media_samples(folder: Path) -> list[Sample]:
    """Every file of a folder, to be described in free text."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [Sample(path.name, (path,), DESCRIBE, (), "", "all") for path in files]


def samples_sha256(samples: list[Sample]) -> str:
    """Identifies the questions and the media's names and sizes (not their contents)."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.id, sample.question, sample.options)).encode())
        digest.update(repr([(path.name, path.stat().st_size) for path in sample.media]).encode())
    return digest.hexdigest()
