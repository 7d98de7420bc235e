"""Measure the code as STYLE tables do: `python -m reflectrt.bench.style` prints our column for CONTRIBUTING.md.

Counts are of tracked Python outside tests/. A function's lines run from `def` to its last line, decorators left out.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).parent.parent
MAIN_PATH = ("runtime/session.py", "runtime/generate.py", "runtime/stream.py")


@dataclass(frozen=True)
class Figures:
    """What the table holds (lines, or shares in percent)."""

    files: int
    largest: tuple[str, int]
    over_300: int
    median: float
    p90: int
    longest: tuple[str, int]
    arguments_annotated: float
    returns_annotated: float
    public_documented: float


def measure(files: list[Path]) -> Figures:
    """Figures over Python files."""
    sources = {file: file.read_text(encoding="utf-8") for file in files}
    functions = [(file, node) for file, text in sources.items() for node in _functions(ast.parse(text))]
    lengths = sorted(_lines(node) for _, node in functions)
    longest = max(functions, key=lambda item: _lines(item[1]))
    sizes = {file: text.count("\n") for file, text in sources.items()}
    largest = max(sizes, key=lambda file: sizes[file])
    arguments = [argument for _, node in functions for argument in _arguments(node)]
    public = [node for _, node in functions if not node.name.startswith("_")]
    return Figures(
        files=len(files),
        largest=(str(largest.relative_to(ROOT)), sizes[largest]),
        over_300=sum(size > 300 for size in sizes.values()),
        median=statistics.median(lengths),
        p90=lengths[int(0.9 * len(lengths))],
        longest=(f"{longest[0].relative_to(ROOT)}:{longest[1].name}", _lines(longest[1])),
        arguments_annotated=_share([argument.annotation is not None for argument in arguments]),
        returns_annotated=_share([node.returns is not None for _, node in functions]),
        public_documented=_share([ast.get_docstring(node) is not None for node in public]),
    )


def _functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _arguments(node: Function) -> list[ast.arg]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument for argument in every if argument.arg not in ("self", "cls")]


def _share(values: list[bool]) -> float:
    return 100 * sum(values) / max(1, len(values))


def tracked() -> list[Path]:
    """Tracked Python files outside tests/."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if not name.startswith("tests/")]


def main() -> None:
    """Print the table's column."""
    figures = measure(tracked())
    longest = figures.longest
    rows = {
        "files to open for the main path": f"{len(MAIN_PATH)} ({', '.join(MAIN_PATH)})",
        "largest file, lines": f"{figures.largest[1]} ({figures.largest[0]})",
        "files over 300 lines": f"{figures.over_300} of {figures.files}",
        "function median / p90 / max": f"{figures.median:g} / {figures.p90} / {longest[1]} ({longest[0]})",
        "arguments / returns annotated": f"{figures.arguments_annotated:.0f} / {figures.returns_annotated:.0f} %",
        "public functions with a docstring": f"{figures.public_documented:.0f} %",
    }
    for name, value in rows.items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
