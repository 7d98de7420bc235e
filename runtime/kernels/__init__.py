"""CUDA kernels of our own, for what no library does at memory's speed; compiled on the machine that runs them."""

from __future__ import annotations

from pathlib import Path


def source(name: str) -> str:
    """The CUDA C++ in a file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
