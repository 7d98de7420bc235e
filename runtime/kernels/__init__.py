"""CUDA kernels of our own, for what no library does at memory's speed; compiled on the machine that runs them."""

from __future__ import annotations

from pathlib import Path


def source(*names: str) -> str:
    """The CUDA C++ in files of this folder, one behind the other."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)
