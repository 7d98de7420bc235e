"""Run a bundle: open media, ask questions. Needs numpy, av, pillow, tokenizers and one engine library; never torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from .answer import Answer, MediaReport
from .bundle import open_bundle
from .errors import ReflectRTError, UsageError
from .sampling import Sampling
from .session import Model, Session

Device = Literal["auto", "cpu", "cuda"]

__all__ = ["Answer", "MediaReport", "Model", "ReflectRTError", "Sampling", "Session", "load"]


def load(bundle: str | Path, device: Device = "auto", threads: int | None = None) -> Model:
    """Open a bundle folder on a device.

    `device` "auto" takes what the bundle was exported for; `threads` are the CPU threads of one operator (default: all
    cores this process may use). Raises UsageError, BundleError, CompatibilityError and ResourceError.
    """
    from .engines import open_engine  # here, so that `import reflectrt` does not load the engine library

    if device not in get_args(Device):
        raise UsageError(f"device is {device!r}; pass {', '.join(get_args(Device))}")
    cores = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= cores:
        raise UsageError(f"threads is {threads}, this process may use {cores} cores; pass 1 to {cores}")
    opened = open_bundle(bundle)
    return Model(opened, open_engine(opened, device, threads))
