"""How much memory this process may still take, and how much a context needs."""

from __future__ import annotations

import os
from pathlib import Path

from .contract import FLOAT
from .errors import ResourceError
from .manifest import ModelFacts

CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Free memory in bytes: the kernel's estimate, or what the control group leaves where that is less."""
    return min(_kernel_available(), _cgroup_available())


def _kernel_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux: free pages are the best that the standard library knows
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_available() -> int:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except OSError:  # no control group, or its first version: no limit that we know of
        return 2**62
    return 2**62 if limit == "max" else int(limit) - used


def cache_bytes(model: ModelFacts, tokens: int, itemsize: int) -> int:
    """Bytes of the KV cache for a context of `tokens` (keys and values of every layer); `itemsize` is a float's."""
    size = itemsize if model.cache_dtype == FLOAT else 1
    return 2 * model.layers * model.kv_heads * model.head_dim * size * tokens


def check_cache_fits(model: ModelFacts, tokens: int, itemsize: int, free: int) -> None:
    """Raise ResourceError where the KV cache of `tokens` would not fit into `free` bytes."""
    need = cache_bytes(model, tokens, itemsize)
    if need > free:
        fit = free // cache_bytes(model, 1, itemsize)
        raise ResourceError(
            f"a context of {tokens} tokens needs {need / 1e6:.0f} MB for its KV cache, {free / 1e6:.0f} MB are free "
            f"(room for {fit} tokens); use a smaller --max-frames or --max-pixels"
        )
