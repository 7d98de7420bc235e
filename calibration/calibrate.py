"""Calibrate: run real samples through the whole single-pass decode, watch, and write down how to quantize."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ..export.bundle import ExportPlan, export_bundle
from ..export.checkpoint import Checkpoint
from ..export.quantize.plain import BLOCK, TABLE, linear_weights, table_recipe
from ..export.quantize.qdq import TYPES
from ..export.recipe import (
    EIGHT_BITS,
    FORMAT,
    FORMAT_MAJOR,
    FORMAT_MINOR,
    STATIC,
    Fold,
    GraphRecipe,
    KVCacheRecipe,
    LinearRecipe,
    Origin,
    Recipe,
    Scheme,
)
from ..runtime import contract
from ..runtime.bundle import open_bundle
from ..runtime.contract import cache_names, cache_output
from ..runtime.errors import BundleError, LimitError, MediaError, NumericError, UsageError
from ..runtime.options import MediaOptions
from ..runtime.session import Model
from .alpha import Choose, LeastError, given
from .observations import Array, Observations, load, save
from .observer import ObservingEngine
from .ranges import Method, input_range, input_scale
from .samples import Sample, samples_sha256
from .smoothing import folded, groups, smooth
from .sources import Kind

MIN_SAMPLES = 8
SAVE_EVERY_S = 20.0
"""Between savings of what was seen: a kill costs so much at most."""
FREE_TEXT_TOKENS = 16
SCHEMES: dict[str, Scheme] = {"int8": "int8", "fp8": "fp8", "int8-weights": "int8-weights", "int4": "int4-weights"}
CACHE_LIMITS = {"int8": 127.0, "fp8": 448.0}


class Progress(Protocol):
    """Where calibration reports how far it is; also an export's progress."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def weights(self, done: int, total: int) -> None:
        """So many of the weights' bytes are written."""

    def samples(self, done: int, total: int) -> None:
        """So many samples are seen."""


@dataclass(frozen=True)
class Settings:
    """What to make of the observations."""

    precision: Literal["int8", "fp8", "int8-weights", "int4"]
    method: Method
    smooth: float | Literal["auto"] | None
    """SmoothQuant's alpha; `auto`: the best for each group of layers; None folds nothing."""
    keep: tuple[str, ...] = ()
    """Shell patterns of layers that stay as they are."""
    eight_bit_weights: tuple[str, ...] = ()
    """Shell patterns of layers that keep 8 bits of weight and float activations, whatever the precision."""
    kv_cache: Literal["int8", "fp8"] | None = None
    max_frames: int = 32
    """Of each clip: ranges need many clips more than long ones."""

    def __post_init__(self) -> None:
        if self.smooth == "auto" and SCHEMES[self.precision] not in STATIC:
            raise UsageError(f"{self.precision} rounds no activations to search by; give --smooth a number")


@dataclass(frozen=True)
class Seen:
    """Observations, by the weight that reads them."""

    observations: Observations
    tensor: Mapping[str, str]
    """The observed tensor of each weight."""

    def maxima(self) -> dict[str, Array]:
        """Channel maxima [in] by weight."""
        return {weight: self.observations.maxima[name] for weight, name in self.tensor.items()}

    def rows(self, weight: str) -> dict[Kind, Array]:
        """Sampled rows [n, in] of what a weight reads, by their source."""
        return self.observations.rows(self.tensor[weight])


def check_samples(samples: Sequence[Sample]) -> None:
    """Raise UsageError where there are too few, or files that are not there."""
    if len(samples) < MIN_SAMPLES:
        raise UsageError(f"{len(samples)} samples are too few to calibrate on; give {MIN_SAMPLES} or more, better 128")
    missing = [str(path) for sample in samples for path in sample.media if not path.is_file()]
    if missing:
        raise UsageError(f"{len(missing)} media files are missing: {', '.join(missing[:10])}; mend or remove them")


def matching(checkpoint: Checkpoint, patterns: Sequence[str], option: str) -> set[str]:
    """Weights of the layers that shell patterns match, with or without `.weight`.

    Raises UsageError, which names the option, for a pattern without any.
    """
    weights = [weight for names in linear_weights(checkpoint).values() for weight in names] + [TABLE]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {w for w in weights if fnmatch.fnmatch(w, pattern) or fnmatch.fnmatch(w[: -len(".weight")], pattern)}
        if not found:
            raise UsageError(
                f"{option} {pattern} matches no layer; layers are called like {weights[0][: -len('.weight')]}"
            )
        chosen |= found
    return chosen


def observe(
    checkpoint: Checkpoint, samples: Sequence[Sample], settings: Settings, work: Path, progress: Progress
) -> Seen:
    """Ask every sample of the float graphs and watch. What was seen is kept in `work`, and gone on with."""
    check_samples(samples)
    bundle = open_bundle(_exported(checkpoint, work, progress))
    state, identity = work / "seen.npz", _identity(checkpoint, samples, settings)
    observations, done = _resumed(state, identity)
    engine = ObservingEngine(bundle, observations, seed=done)
    model = Model(bundle, engine)
    progress.stage("check samples")
    _check_readable(model, samples[done:], settings)
    progress.stage("observe")
    saved = time.monotonic()
    for number, sample in enumerate(samples[done:], done + 1):
        _ask(model, sample, settings)
        if time.monotonic() - saved > SAVE_EVERY_S or number == len(samples):
            save(observations, state, identity=np.array(identity), done=np.array(number))
            saved = time.monotonic()
        progress.samples(number, len(samples))
    tensors = [pairs for readers in engine.readers.values() for pairs in readers.items()]
    return Seen(observations, {weight: name for name, weights in tensors for weight in weights})


def make_recipe(checkpoint: Checkpoint, samples: Sequence[Sample], settings: Settings, seen: Seen) -> Recipe:
    """The recipe that the observations give. Raises NumericError where a range is not finite."""
    kept = matching(checkpoint, settings.keep, "--keep")
    wide = matching(checkpoint, settings.eight_bit_weights, "--eight-bit-weights")
    folds = _folds(checkpoint, settings, seen)
    graphs = {
        graph: GraphRecipe(
            {w: EIGHT_BITS if w in wide else _linear(w, seen, folds, settings) for w in weights if w not in kept}
        )
        for graph, weights in linear_weights(checkpoint).items()
    }
    if TABLE not in kept:
        graphs[contract.EMBED] = GraphRecipe({TABLE: EIGHT_BITS}) if TABLE in wide else table_recipe(settings.precision)
    origin = Origin(
        settings.method,
        settings.smooth,
        len(samples),
        samples_sha256(list(samples)),
        settings.keep,
        tools={name: importlib.metadata.version(name) for name in ("reflectrt", "onnxruntime", "numpy")},
        seen=seen.observations.seen(),
    )
    cache = _cache(checkpoint, seen.observations, settings.kv_cache) if settings.kv_cache else None
    version = (FORMAT_MAJOR, FORMAT_MINOR)
    return Recipe(FORMAT, version, checkpoint.fingerprint(), settings.precision, graphs, tuple(folds), cache, origin)


def _folds(checkpoint: Checkpoint, settings: Settings, seen: Seen) -> list[Fold]:
    if settings.smooth is None:
        return []
    choose: Choose
    if settings.smooth == "auto":
        choose = LeastError(
            TYPES[SCHEMES[settings.precision]], seen.maxima(), lambda name: seen.observations.rows(seen.tensor[name])
        )
    else:
        choose = given(settings.smooth)
    return smooth(groups(checkpoint), seen.maxima(), lambda n: checkpoint.read(n).flatten(1).float().numpy(), choose)


def _linear(weight: str, seen: Seen, folds: Sequence[Fold], settings: Settings) -> LinearRecipe:
    scheme = SCHEMES[settings.precision]
    if scheme not in STATIC:
        return LinearRecipe(scheme, block=BLOCK if scheme == "int4-weights" else 0)
    tensor = seen.tensor[weight]
    largest = float(folded(seen.observations.maxima[tensor], weight, folds).max())
    rows = {kind: folded(rows, weight, folds) for kind, rows in seen.rows(weight).items()}
    reach = input_range(settings.method, scheme, rows, largest)
    if not np.isfinite(reach):
        raise NumericError(f"the range of {weight}'s input is {reach}; check the checkpoint with `reflectrt verify`")
    return LinearRecipe(scheme, input_scale=input_scale(reach, scheme))


def _cache(checkpoint: Checkpoint, observations: Observations, kind: Literal["int8", "fp8"]) -> KVCacheRecipe:
    scales = []
    for name in cache_names(checkpoint.text.layers):
        largest = observations.maxima[cache_output(name)] / CACHE_LIMITS[kind]
        scales.append(tuple(map(float, np.where(largest > 0, largest, 1.0))))
    return KVCacheRecipe(kind, tuple(scales[::2]), tuple(scales[1::2]))


def float_bundle(work: Path) -> Path:
    """Where `observe` keeps the checkpoint's float32 bundle."""
    return work / "float"


def _exported(checkpoint: Checkpoint, work: Path, progress: Progress) -> Path:
    """The checkpoint's float32 bundle in `work`, exported where it is not there yet."""
    work.mkdir(exist_ok=True)
    folder = float_bundle(work)
    with_force = folder.exists()
    try:
        if with_force and open_bundle(folder).manifest.source.fingerprint == checkpoint.fingerprint():
            return folder
    except BundleError:  # of an older version, or damaged: it is only ours, make it again
        pass
    export_bundle(checkpoint, folder, ExportPlan(), progress, force=with_force)
    return folder


def _identity(checkpoint: Checkpoint, samples: Sequence[Sample], settings: Settings) -> str:
    """What must be the same for one run to go on with what another has seen."""
    return json.dumps([checkpoint.fingerprint(), samples_sha256(list(samples)), settings.max_frames])


def _resumed(state: Path, identity: str) -> tuple[Observations, int]:
    if state.is_file():
        observations, more = load(state)
        if str(more["identity"]) == identity:
            return observations, int(more["done"])
    return Observations(), 0


def _check_readable(model: Model, samples: Sequence[Sample], settings: Settings) -> None:
    """Raise MediaError that names every sample whose media cannot be opened."""
    options = MediaOptions(max_frames=settings.max_frames)
    bad = []
    for sample in samples:
        for path in sample.media:
            try:
                model.open_medium(path, options)
            except (LimitError, MediaError) as error:
                bad.append(f"{sample.id} ({error})")
    if bad:
        raise MediaError(f"{len(bad)} samples cannot be read: {'; '.join(bad[:5])}; mend or remove them")


def _ask(model: Model, sample: Sample, settings: Settings) -> None:
    """One sample from media to answer, reflecting where the checkpoint can; the answer is of no interest."""
    reflect = "always" if model.manifest.reflection else "off"
    try:
        session = model.open(*sample.media, max_frames=settings.max_frames)
        session.ask(sample.question, sample.options, reflect=reflect, max_new_tokens=FREE_TEXT_TOKENS)
    except (LimitError, MediaError) as error:
        raise MediaError(f"sample {sample.id}: {error}; mend or remove it, then run the same command again") from None
