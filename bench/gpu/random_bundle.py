"""A bundle of the 7B shape with random weights: made where it is not there yet, and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ...runtime import manifest as manifests
from ...runtime.bundle import Bundle
from ...runtime.engines.onnxruntime_cuda import OrtCudaEngine
from ...runtime.manifest import Manifest
from ...runtime.session import Model
from .weights import fill


def prepare(work: Path, precision: str, kv_cache: Literal["int8", "fp8"] | None = None) -> Path:
    """The bundle's folder in `work`, which must exist; graphs and weights are kept for the next run."""
    folder = work / (f"{precision}-{kv_cache}-cache" if kv_cache else precision)
    if not folder.exists():
        from .skeleton import write_skeleton  # here: measuring needs no exporter

        write_skeleton(folder, precision, kv_cache)
    if not all((folder / file).exists() for file in _manifest(folder).files):
        fill(folder)
    return folder


def prepared_bundle(folder: Path) -> Bundle:
    """The bundle in a folder. Its weights have no hashes to check: they were drawn a moment ago."""
    manifest = _manifest(folder)
    return Bundle(folder, manifest, manifest.source.fingerprint)


def open_prepared(folder: Path) -> Model:
    """The model on the GPU."""
    bundle = prepared_bundle(folder)
    return Model(bundle, OrtCudaEngine(bundle))


def _manifest(folder: Path) -> Manifest:
    return manifests.parse((folder / manifests.FILE_NAME).read_text(encoding="utf-8"))
