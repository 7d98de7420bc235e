"""A recipe: how each Linear of a model is quantized, as data. `calibration/` writes it, export reads it.

    recipe.json   format version, the checkpoint's fingerprint, precision, a scheme for every quantized Linear by the
                  checkpoint name of its weight, what is folded where, how the numbers came about

A Linear that no graph lists stays as it is. Symmetric throughout: zero points are 0.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..runtime import strict
from ..runtime.errors import ExportError
from ..runtime.strict import StrictError

FORMAT = "reflectrt-recipe"
FORMAT_MAJOR, FORMAT_MINOR = 1, 0
MAX_BYTES = 256 * 2**20
BLOCKS = (0, 32, 128)

Scheme = Literal["int8", "fp8", "int8-weights", "int4-weights"]
STATIC: tuple[Scheme, ...] = ("int8", "fp8")
"""Schemes that quantize activations too, from ranges found in advance."""


@dataclass(frozen=True)
class LinearRecipe:
    """How one Linear is stored and run."""

    scheme: Scheme
    input_scale: float | None = None
    """Of the static schemes: real value of one integer step (int8) or of 1.0 (fp8) of the input."""
    block: int = 0
    """Of the weights-only schemes: rows of the input axis that share a scale; 0 is all of them."""


EIGHT_BITS = LinearRecipe("int8-weights")
"""The widest scheme that still quantizes: a scale a row of 8-bit weights, float activations."""


@dataclass(frozen=True)
class Fold:
    """SmoothQuant's migration: channels of what writes an activation are divided, rows of what reads it multiplied.

    Reading row (b, r, w) of shape [blocks, repeat, width] gets the factor of source channel (b, w): `repeat` heads read
    one key-value head, `repeat` patches stand side by side in the merger.
    """

    source: str
    """The norm's or Linear's weight whose output channels are divided (a Linear's bias with it)."""
    first: int
    """The first of those channels in the source."""
    readers: tuple[str, ...]
    """Weights of the Linears that read them."""
    width: int
    """Channels of one block."""
    repeat: int
    factors: tuple[float, ...]
    """[blocks * width], positive."""


@dataclass(frozen=True)
class KVCacheRecipe:
    """Scales of a quantized cache, [layers][kv_heads * head_dim]: keys (after rotation) and values."""

    type: Literal["int8", "fp8"]
    key_scales: tuple[tuple[float, ...], ...]
    value_scales: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Origin:
    """How a recipe came about."""

    method: str
    smooth: float | str | None
    """SmoothQuant's alpha, or `auto`: one for each group; None: nothing was folded."""
    samples: int
    samples_sha256: str
    kept: tuple[str, ...] = ()
    """Patterns of Linears that were to stay as they are."""
    damage: dict[str, float] = field(default_factory=dict)
    """Each Linear's own damage where it was measured (nats): mean KL of the next token with it alone quantized."""
    spared: tuple[str, ...] = ()
    """Weights that are stored wider than the precision because of their damage."""
    tools: dict[str, str] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    """Rows that calibration saw, by graph and source; `decoder from hidden` are fed-back hidden states."""


@dataclass(frozen=True)
class GraphRecipe:
    """One graph: its Linears by the name of their weight."""

    linears: dict[str, LinearRecipe]


@dataclass(frozen=True)
class Recipe:
    """A whole model's quantization."""

    format: str
    version: tuple[int, int]
    checkpoint: str
    """Fingerprint of the checkpoint that the numbers belong to; empty: any (schemes that need no ranges)."""
    precision: Literal["int8", "int8-weights", "fp8", "int4"]
    graphs: dict[str, GraphRecipe]
    folds: tuple[Fold, ...]
    kv_cache: KVCacheRecipe | None
    origin: Origin | None

    def graph(self, name: str) -> GraphRecipe:
        """A graph's part; empty where the recipe does not name it."""
        return self.graphs.get(name, GraphRecipe({}))

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps: everything but the long vectors."""
        return {
            "precision": self.precision,
            "graphs": {
                name: {
                    "schemes": dict(Counter(linear.scheme for linear in graph.linears.values())),
                    "linears": {weight: asdict(linear) for weight, linear in graph.linears.items()},
                }
                for name, graph in self.graphs.items()
            },
            "folds": len(self.folds),
            "kv_cache": self.kv_cache.type if self.kv_cache else None,
            "origin": asdict(self.origin) if self.origin else None,
        }


def read_recipe(file: Path) -> Recipe:
    """The recipe in a file. Raises ExportError, which names the field that is wrong."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ExportError(f"{file} is larger than any recipe; pass what `reflectrt calibrate` wrote")
        return parse(file.read_text(encoding="utf-8"))
    except StrictError as error:
        raise ExportError(f"{file}: {error}; calibrate again") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ExportError(f"{file} cannot be read ({reason}); pass what `reflectrt calibrate` wrote") from None


def dump(recipe: Recipe) -> str:
    """The recipe as JSON text."""
    return json.dumps(asdict(recipe), indent=1, allow_nan=False) + "\n"


def parse(text: str) -> Recipe:
    """The recipe in JSON text. Raises StrictError."""
    data = strict.loads(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise StrictError(f'it does not say "format": "{FORMAT}"')
    version = data.get("version")
    if not (isinstance(version, list) and len(version) == 2 and version[0] == FORMAT_MAJOR):
        raise StrictError(f"recipe.version is {strict.short(version)}, this ReflectRT reads {FORMAT_MAJOR}.x")
    recipe = strict.build(Recipe, data, "recipe")
    for problem in _problems(recipe):
        raise StrictError(problem)
    return recipe


def _problems(recipe: Recipe) -> Iterator[str]:
    """What the types allow and the arithmetic does not."""
    for name, graph in recipe.graphs.items():
        for weight, linear in graph.linears.items():
            where = f"recipe.graphs.{name}.linears.{strict.short(weight)}"
            if (linear.scheme in STATIC) != (linear.input_scale is not None):
                yield f"{where}: {linear.scheme} goes {'with' if linear.scheme in STATIC else 'without'} input_scale"
            if linear.input_scale is not None and not _positive(linear.input_scale):
                yield f"{where}.input_scale is {linear.input_scale}, not above 0"
            if linear.block not in (BLOCKS if linear.scheme not in STATIC else (0,)):
                yield f"{where}.block is {linear.block}, which {linear.scheme} does not have"
    for fold in recipe.folds:
        yield from _fold_problems(fold)
    if recipe.kv_cache and not all(
        map(
            _positive,
            (s for part in (recipe.kv_cache.key_scales, recipe.kv_cache.value_scales) for r in part for s in r),
        )
    ):
        yield "recipe.kv_cache has scales that are not above 0"


def _fold_problems(fold: Fold) -> Iterator[str]:
    where = f"recipe.folds of {strict.short(fold.source)}"
    if fold.width < 1 or fold.repeat < 1 or fold.first < 0 or not fold.factors or len(fold.factors) % fold.width:
        yield f"{where}: {len(fold.factors)} factors do not divide into blocks of {fold.width}"
    if not all(map(_positive, fold.factors)):
        yield f"{where}: factors that are not above 0"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
