"""The manifest: everything a bundle says of itself, as frozen dataclasses and strict JSON.

Unknown fields are ignored within a format version's minor steps (a newer writer may add facts); a missing field or a
wrong type is an error that names it. Facts come from here, never from a file name.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from string import ascii_uppercase
from typing import Any, Literal, TypeVar

from .contract import Port, Signature, Sizes, signatures
from .errors import BundleError, CompatibilityError

FORMAT = "reflectrt-bundle"
FORMAT_MAJOR, FORMAT_MINOR = 1, 0
FILE_NAME = "manifest.json"
MAX_BYTES = 16 * 2**20
MAX_SIZE, MAX_LAYERS = 2**31, 1000
"""Bounds on a model's sizes, beyond any model there is: they keep a forged manifest from asking for endless work."""

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFacts:
    """Sizes and constants that the runtime computes with (counts, unless named otherwise)."""

    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    channels: int
    patch: int
    temporal_patch: int
    merge: int
    window: int
    """Side of an attention window, in patches."""
    tokens_per_second: float
    max_context: int
    """Tokens that prompt and answer may fill together."""

    def sizes(self) -> Sizes:
        """The sizes that fix the graphs' signatures."""
        patch_values = self.channels * self.temporal_patch * self.patch**2
        return Sizes(self.hidden, self.layers, self.kv_heads, self.head_dim, self.vocab, patch_values, self.window**2)


@dataclass(frozen=True)
class PromptTokens:
    """The fixed parts of a prompt, tokenized by the exporter (token ids)."""

    opening: tuple[int, ...]
    """System message, and the user's turn opened."""
    visual_open: tuple[int, ...]
    visual_close: tuple[int, ...]
    closing: tuple[int, ...]
    """The user's turn closed and the assistant's opened."""
    answer_prefix: tuple[int, ...]
    """`The answer is:`"""
    letters: tuple[int, ...]
    """` A` to ` Z` as they follow the answer prefix."""
    image_pad: int
    video_pad: int
    stop: tuple[int, ...]


@dataclass(frozen=True)
class Reflection:
    """Token ids of `<BOR>`, `<VR>`, `<EOR>`, the head's kind, and how many steps the checkpoint is meant to take."""

    begin: int
    step: int
    end: int
    head: Literal["identity", "linear", "mlp"]
    image_steps: int
    video_steps: int


@dataclass(frozen=True)
class ImagePixels:
    """Pixel budget of one image after resizing."""

    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class VideoPixels:
    """Sampling and pixel budget of a video: frames a second, frames at most, pixels per frame and in all."""

    fps: float
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_pixels: int


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file and the ports found in it."""

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def signature(self) -> Signature:
        """Inputs and outputs as a signature."""
        return Signature(self.inputs, self.outputs)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The checkpoint that the bundle was made from."""

    name: str
    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class Verification:
    """What was found when the bundle was held against PyTorch: figures, and whether they passed."""

    passed: bool
    figures: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """A bundle's `manifest.json`."""

    format: str
    version: tuple[int, int]
    target: str
    precision: str
    activation: str
    """Element type of every "float" port."""
    model: ModelFacts
    prompt: PromptTokens
    reflection: Reflection | None
    image: ImagePixels
    video: VideoPixels
    graphs: dict[str, GraphEntry]
    source: Source
    tools: dict[str, str]
    engine: dict[str, str]
    """What the target's library must be, e.g. {"onnxruntime": "1.31"} (the oldest that runs it)."""
    recipe: dict[str, Any] | None
    verification: Verification | None
    files: dict[str, FileEntry]

    def expected_signatures(self) -> dict[str, Signature]:
        """What the contract asks of the graphs that this model must have."""
        wanted = signatures(self.model.sizes())
        if self.reflection is None or self.reflection.head == "identity":
            del wanted["reflect"]
        return wanted


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text."""
    return json.dumps(asdict(manifest), indent=1, sort_keys=False) + "\n"


def parse(text: str) -> Manifest:
    """The manifest in JSON text; BundleError names the field that is wrong, CompatibilityError a newer format."""
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{FILE_NAME} is not valid JSON ({error}); export the bundle again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f'{FILE_NAME} does not say "format": "{FORMAT}"; this is not a ReflectRT bundle')
    _check_version(data.get("version"))
    manifest = _build(Manifest, data, "manifest")
    _check_sizes(manifest.model)
    _check_ids(manifest)
    return manifest


def _check_sizes(model: ModelFacts) -> None:
    """Numbers that the runtime divides by and allocates from are in reason."""
    for name, value in asdict(model).items():
        if not 0 < value <= (MAX_LAYERS if name == "layers" else MAX_SIZE):
            raise BundleError(f"manifest.model.{name} is {_short(value)}, which cannot be; export the bundle again")


def _check_ids(manifest: Manifest) -> None:
    """Every token id is in the vocabulary, and no part of the prompt is empty."""
    ids = asdict(manifest.prompt)
    if manifest.reflection:
        ids |= {name: getattr(manifest.reflection, name) for name in ("begin", "step", "end")}
    for name, value in ids.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not parts or not all(0 <= part < manifest.model.vocab for part in parts):
            raise BundleError(f"manifest: {name} is {_short(value)}, no tokens of this model; export the bundle again")
    if len(manifest.prompt.letters) != len(ascii_uppercase):
        raise BundleError(f"manifest: {len(manifest.prompt.letters)} letters, not A to Z; export the bundle again")


def _check_version(version: object) -> None:
    if not (isinstance(version, list) and len(version) == 2 and all(type(v) is int for v in version)):
        raise BundleError(f"manifest.version is {version!r}, not [major, minor]; export the bundle again")
    if version[0] != FORMAT_MAJOR:
        raise CompatibilityError(
            f"bundle format {version[0]}.{version[1]} is not the {FORMAT_MAJOR}.x that this ReflectRT reads; "
            "install the version that wrote it, or export again"
        )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _build(kind: type[T], data: object, where: str) -> T:
    if not isinstance(data, dict):
        raise BundleError(f"{where} is not an object; export the bundle again")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # only called on dataclasses
        if field.name not in data:
            raise BundleError(f"{where}.{field.name} is missing; export the bundle again")
        values[field.name] = _value(hints[field.name], data[field.name], f"{where}.{field.name}")
    return kind(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    """`data` checked against a type hint and rebuilt as it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), data, where)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _either(args, data, where)
    if origin is Literal and data in args:
        return data
    if origin is tuple and isinstance(data, list):
        return _items(args, data, where)
    if origin is dict and isinstance(data, dict):
        return {key: _value(args[1], item, f"{where}.{_printable(key)}") for key, item in data.items()}
    if hint is float and type(data) in (int, float) and abs(data) < 2**63:  # JSON's 1e999 is read as infinity
        return float(data)
    if isinstance(hint, type) and type(data) is hint:
        return data
    wanted = getattr(hint, "__name__", hint)
    raise BundleError(f"{where} is {_short(data)}, not {wanted}; export the bundle again")


def _either(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in choices:
        return None
    simple = {int: int, str: str}
    if type(data) in choices and type(data) in simple:
        return data
    rest = [choice for choice in choices if choice is not type(None)]
    return _value(rest[0], data, where)


def _items(args: tuple[Any, ...], data: list[Any], where: str) -> tuple[Any, ...]:
    hints = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(data):
        raise BundleError(f"{where} has {len(data)} items, not {len(hints)}; export the bundle again")
    return tuple(_value(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, data, strict=True)))


def _printable(key: str) -> str:
    return (key if key.isprintable() else ascii(key))[:80]


def _short(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
