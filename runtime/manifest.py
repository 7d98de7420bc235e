"""The manifest: everything a bundle says of itself, as frozen dataclasses and strict JSON.

Unknown fields are ignored within a format version's minor steps (a newer writer may add facts); a missing field or a
wrong type is an error that names it. Facts come from here, never from a file name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import prod
from string import ascii_uppercase
from typing import Any, Literal

from . import strict
from .contract import CacheDtype, Port, Signature, Sizes, signatures
from .errors import BundleError, CompatibilityError
from .plans import EnginePlan
from .strict import StrictError, short

FORMAT = "reflectrt-bundle"
FORMAT_MAJOR, FORMAT_MINOR = 1, 6
FILE_NAME = "manifest.json"
MAX_BYTES = 16 * 2**20
MAX_SIZE, MAX_LAYERS = 2**31, 1000
"""Bounds on a model's sizes, beyond any model there is: they keep a forged manifest from asking for endless work."""


WeightDtype = Literal["float32", "bfloat16", "float16", "float8e4m3fn", "uint8"]
"""Element types of weights that are inputs."""

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8e4m3fn": 1, "uint8": 1}


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
    cache_dtype: CacheDtype = "float"
    """Element type of the KV cache ("float": the activation type), since format 1.2."""
    logits_dtype: Literal["float", "float32"] = "float32"
    """Element type of what the head gives, since format 1.6; before, the activation type."""

    def sizes(self) -> Sizes:
        """The sizes that fix the graphs' signatures."""
        patch_values = self.channels * self.temporal_patch * self.patch**2
        return Sizes(
            hidden=self.hidden,
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab,
            patch_values=patch_values,
            window_patches=self.window**2,
            cache_dtype=self.cache_dtype,
            logits_dtype=self.logits_dtype,
        )


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
class StoredWeight:
    """A weight that is an input of a graph's files: where its bytes lie in the bundle."""

    name: str
    dtype: WeightDtype
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * ITEMSIZES[self.dtype]


@dataclass(frozen=True)
class LongForm:
    """How runs of `tokens` or more go: a layer's attention is a file of its own, MLPs are multiplied in fp8."""

    file: str
    tokens: int
    mlp_steps: tuple[tuple[float, float], ...]
    """What each layer's MLP divides its inputs by, and what `down_proj` reads, before they are rounded."""


@dataclass(frozen=True)
class StepLinear:
    """Names of a matrix [out, in] and, where it is quantized, of its scales [out, in / block]."""

    weight: str
    scales: str | None

    def names(self) -> tuple[str, ...]:
        """Both, or the one there is."""
        return (self.weight, self.scales) if self.scales else (self.weight,)


@dataclass(frozen=True)
class StepLayer:
    """Names of one layer's weights, in the order in which a step reads them."""

    norm: str
    qkv: StepLinear
    bias: str
    output: StepLinear
    mlp_norm: str
    gate: StepLinear
    up: StepLinear
    down: StepLinear
    cache_scales: tuple[str, ...]
    """Of keys and of values [1, kv_heads, 1, head_dim], where the KV cache is quantized; otherwise none."""

    def products(self) -> tuple[tuple[StepLinear, ...], ...]:
        """Its matrices; those of one product, which must be alike, side by side."""
        return (self.qkv,), (self.output,), (self.gate, self.up), (self.down,)

    def attention_names(self) -> tuple[str, ...]:
        """Of its attention, and of the norm behind that."""
        matrices = (*self.qkv.names(), self.bias, *self.cache_scales, *self.output.names())
        return (self.norm, *matrices, self.mlp_norm)

    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.attention_names(), *self.gate.names(), *self.up.names(), *self.down.names())


@dataclass(frozen=True)
class StepForm:
    """What kernels of our own need to run a decoder's steps over `GraphEntry.weights`; the activation is 16 bits."""

    heads: int
    epsilon: float
    """Of the RMS norms."""
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Pairs of a head that time, height and width turn."""
    layers: tuple[StepLayer, ...]
    norm: str


@dataclass(frozen=True)
class VisionForm:
    """The vision graph's files in segments, between attentions by kernels of our own; `contract.py` has the ports."""

    start: str
    block: str
    """Run for each block but the last, over weights that are its inputs."""
    end: str
    heads: int
    head_dim: int
    inputs: tuple[str, ...]
    """The block file's inputs that are weights."""
    blocks: tuple[tuple[str, ...], ...]
    """For each run of the block's file, the names in `GraphEntry.weights` of what is bound to `inputs`, in order."""
    full_attention_blocks: tuple[int, ...]
    """Those that attend over whole grids, not in windows."""


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file and the ports found in it."""

    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    long_form: LongForm | None = None
    """Since format 1.5; 1.4 had another, which is not read."""
    weights: tuple[StoredWeight, ...] = ()
    """Inputs behind the contract's: all of `file`'s, and of the long form's file those that it reads; of a block form's
    file alone where there is one. An engine loads them once. Since format 1.4."""
    step_form: StepForm | None = None
    """Since format 1.5."""
    block_form: VisionForm | None = None
    """Since format 1.5."""

    def signature(self) -> Signature:
        """Inputs and outputs as the contract has them."""
        return Signature(self.inputs, self.outputs)

    def file_signature(self) -> Signature:
        """Inputs and outputs of its files, weights included."""
        bound = () if self.block_form else self.weights
        weights = tuple(Port(weight.name, weight.shape, weight.dtype) for weight in bound)
        return Signature((*self.inputs, *weights), self.outputs)

    def files(self) -> tuple[str, ...]:
        """Every file that it names."""
        long = (self.long_form.file,) if self.long_form else ()
        form = self.block_form
        segments = (form.start, form.block, form.end) if form else ()
        return (self.file, *long, *segments, *dict.fromkeys(weight.file for weight in self.weights))


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
    plans: tuple[EnginePlan, ...]
    """What was compiled of the graphs for TensorRT, since format 1.1."""
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


def identity(text: str) -> str:
    """SHA-256 (hex) of a manifest's JSON without its verification, in one fixed form.

    It tells what a bundle computes with: the same files and facts are the same, whatever was found out about them.
    """
    facts = json.loads(text) | {"verification": None}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(text: str) -> Manifest:
    """The manifest in JSON text; BundleError names the field that is wrong, CompatibilityError a newer format."""
    try:
        data = strict.loads(text)
    except StrictError as error:
        raise BundleError(f"{FILE_NAME} is {error}; export the bundle again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f'{FILE_NAME} does not say "format": "{FORMAT}"; this is not a ReflectRT bundle')
    _check_version(data.get("version"))
    if data["version"] < [1, 1]:
        data.setdefault("plans", [])
    if data["version"] < [1, 2] and isinstance(model := data.get("model"), dict):
        model.setdefault("cache_dtype", "float")
    if data["version"] < [1, 3] and isinstance(plans := data["plans"], list):
        for plan in plans:
            if isinstance(plan, dict):
                plan.setdefault("weight_streaming", False)
    if data["version"] < [1, 4] and isinstance(graphs := data.get("graphs"), dict):
        for graph in graphs.values():
            if isinstance(graph, dict):
                graph.setdefault("long_form", None)
                graph.setdefault("weights", [])
    if data["version"] < [1, 5] and isinstance(graphs := data.get("graphs"), dict):
        for graph in graphs.values():
            if isinstance(graph, dict):
                graph["long_form"] = None  # it was another one, which this version does not run; no graph needs it
                graph.setdefault("step_form", None)
                graph.setdefault("block_form", None)
    if data["version"] < [1, 6] and isinstance(model := data.get("model"), dict):
        model.setdefault("logits_dtype", "float")
    try:
        manifest = strict.build(Manifest, data, "manifest")
    except StrictError as error:
        raise BundleError(f"{error}; export the bundle again") from None
    _check_sizes(manifest.model)
    _check_ids(manifest)
    return manifest


def _check_sizes(model: ModelFacts) -> None:
    """Numbers that the runtime divides by and allocates from are in reason."""
    for name, value in asdict(model).items():
        if not name.endswith("_dtype") and not 0 < value <= (MAX_LAYERS if name == "layers" else MAX_SIZE):
            raise BundleError(f"manifest.model.{name} is {short(value)}, which cannot be; export the bundle again")


def _check_ids(manifest: Manifest) -> None:
    """Every token id is in the vocabulary, and no part of the prompt is empty."""
    ids = asdict(manifest.prompt)
    if manifest.reflection:
        ids |= {name: getattr(manifest.reflection, name) for name in ("begin", "step", "end")}
    for name, value in ids.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not parts or not all(0 <= part < manifest.model.vocab for part in parts):
            raise BundleError(f"manifest: {name} is {short(value)}, no tokens of this model; export the bundle again")
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
