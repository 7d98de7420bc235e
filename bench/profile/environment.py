"""What a figure needs beside it to be repeated."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .report import Environment

LIBRARIES = (
    *("reflectrt", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13"),
    *("numpy", "av", "pillow", "tokenizers"),
)
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


def describe(device: str, threads: int, load_average: float, with_torch: bool) -> Environment:
    """The machine and the libraries, as they are now."""
    libraries = (*LIBRARIES, "torch", "transformers") if with_torch else LIBRARIES
    found = {name: _version(name) for name in libraries}
    return Environment(
        device=_gpu("name") if device == "cuda" else cpu_name(),
        driver=_gpu("driver_version") if device == "cuda" else f"{platform.system()} {platform.release()}",
        threads=threads,
        clock=_clock(),
        load_average=load_average,
        versions={"python": platform.python_version()} | {name: text for name, text in found.items() if text},
    )


def cpu_name() -> str:
    """The processor's name and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    return f"{_model_name()}, {cores} core{'s' if cores > 1 else ''}"


def _model_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _clock() -> str:
    info = time.get_clock_info("perf_counter")
    source = f", {CLOCK_SOURCE.read_text().strip()}" if CLOCK_SOURCE.is_file() else ""
    return f"{info.implementation}{source}, resolution {info.resolution:.0e} s"


def _gpu(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return f"unknown ({sys.platform})"
    return done.stdout.splitlines()[0].strip()
