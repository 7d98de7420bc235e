"""Facts from config.json and its neighbours, as transformers saves them today and as published in 2025.

config.json has two spellings. Today text keys are in `text_config` and rotary ones in its `rope_parameters`;
in 2025 they were at the root, with `rope_scaling` and `rope_theta`. Files saved in between have both; like
transformers we then take `text_config`. Read as plain JSON: no release of transformers may change a fact.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..runtime.errors import ExportError
from .facts import CLIP_MEAN, CLIP_STD, ImageBudget, TextFacts, VisionFacts

MODEL_TYPE = "qwen2_5_vl"
MAX_JSON_BYTES = 256 * 2**20  # Qwen's tokenizer.json is 11 MB, the index of a 72B checkpoint 0.1 MB
MAX_COUNT = 2**24  # beyond any real size; with MAX_LAYERS it keeps a crafted config from endless loops
MAX_LAYERS = 1000

Json = dict[str, Any]


def read_json(path: Path) -> Json:
    """The object in a JSON file; ExportError where it is missing, oversized or malformed."""
    if not path.is_file():
        raise ExportError(f"{path} is missing; download the checkpoint again, with all its .json files")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ExportError(f"{path} has more than {MAX_JSON_BYTES} bytes; this is not a checkpoint's JSON")
    try:
        data = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise ExportError(f"{path} does not hold a JSON object; download it again")
    return data


def read_optional_json(path: Path) -> Json:
    """Like `read_json`, but {} where there is no such file."""
    return read_json(path) if path.exists() else {}


class Section:
    """One object of a JSON file with typed look-ups; ExportError names the key that is missing or wrong."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ExportError(f"{where} is missing or not an object; is this checkpoint complete?")
        self.data: Json = data
        self.where = where

    def fail(self, key: str, wanted: str) -> ExportError:
        """The error for a key that holds something else than `wanted`."""
        found = repr(self.data.get(key, "missing"))[:60]
        return ExportError(f"{self.where}: {key} is {found}, not {wanted}; download the file again or mend it")

    def count(self, key: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        """A whole number from 1 to `most`."""
        value = self.data.get(key, default)
        if type(value) is not int or not 0 < value <= most:
            raise self.fail(key, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value: Any = self.data.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.fail(key, "a positive number")
        return float(value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """As many positive numbers as `default` has."""
        value = self.data.get(key, default)
        fits = isinstance(value, list | tuple) and len(value) == len(default)
        if not fits or not all(type(v) in (int, float) and 0 < v < math.inf for v in value):
            raise self.fail(key, f"{len(default)} positive numbers")
        return tuple(float(v) for v in value)

    def indices(self, key: str) -> tuple[int, ...]:
        """Whole numbers from 0 on."""
        value = self.data.get(key)
        if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= MAX_COUNT for v in value):
            raise self.fail(key, "a list of whole numbers")
        return tuple(value)

    def one_of(self, key: str, *choices: object) -> None:
        """Check that a key, where present, holds one of `choices`."""
        if self.data.get(key, choices[0]) not in choices:
            found, choice = repr(self.data[key])[:60], " or ".join(map(repr, choices))
            raise ExportError(
                f"{self.where}: {key} is {found}, but only {choice} can be exported; take another checkpoint"
            )


def check_model(config: Json, path: Path) -> None:
    """Refuse what this project does not export: other architectures, quantized weights."""
    found = config.get("model_type")
    if found != MODEL_TYPE:
        raise ExportError(
            f"{path} has model_type {repr(found)[:60]}; only {MODEL_TYPE!r} can be exported: "
            "choose a VisReflect or Qwen2.5-VL checkpoint"
        )
    if config.get("quantization_config") is not None:
        raise ExportError(
            f"{path} is of a quantized checkpoint; export the original one and choose --precision instead"
        )


def text_facts(config: Json, where: str) -> TextFacts:
    """The language model's facts from config.json; ExportError for what is missing, wrong or unsupported."""
    text = text_section(config, where)
    heads, hidden = text.count("num_attention_heads"), text.count("hidden_size")
    head_dim = _head_dim(text, hidden, heads)
    kv_heads = text.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise text.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    text.one_of("hidden_act", "silu")
    _refuse_sliding_window(text)
    theta, section = _rotary(text, head_dim)
    return TextFacts(
        layers=text.count("num_hidden_layers", most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=text.count("intermediate_size"),
        vocab=text.count("vocab_size"),
        rms_eps=text.number("rms_norm_eps"),
        rope_theta=theta,
        mrope_section=section,
        # Root or text_config, like transformers: before version 5 it was saved inside text_config.
        tied=bool(config.get("tie_word_embeddings")) or bool(text.data.get("tie_word_embeddings")),
        max_positions=text.count("max_position_embeddings"),
    )


def text_section(config: Json, where: str) -> Section:
    """The object that holds the text keys: `text_config`, or the root of a flat config."""
    nested = config.get("text_config")
    return Section(config, where) if nested is None else Section(nested, f"{where} text_config")


def _head_dim(text: Section, hidden: int, heads: int) -> int:
    if hidden % heads or hidden // heads % 2:
        raise text.fail("hidden_size", f"an even multiple of num_attention_heads ({heads})")
    text.one_of("head_dim", hidden // heads, None)
    return hidden // heads


def _refuse_sliding_window(text: Section) -> None:
    text.one_of("use_sliding_window", False, None)
    layers = text.data.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise text.fail("layer_types", "full_attention in every layer, the only kind that can be exported")


def _rotary(text: Section, head_dim: int) -> tuple[float, tuple[int, int, int]]:
    """Base and sections of M-RoPE; `rope_scaling` is the name of 2025, when the base stood beside it."""
    key = "rope_parameters" if text.data.get("rope_parameters") else "rope_scaling"
    rope = Section(text.data.get(key), f"{text.where} {key}")
    for name in ("rope_type", "type"):
        rope.one_of(name, "default", "mrope")
    sections = rope.indices("mrope_section")
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise rope.fail("mrope_section", f"3 numbers whose sum is half the head size ({head_dim // 2})")
    base = text.number("rope_theta", 1_000_000.0)  # transformers' default for this model
    return rope.number("rope_theta", base), (sections[0], sections[1], sections[2])


def vision_facts(config: Json, pixels: Section, text: TextFacts, where: str) -> VisionFacts:
    """The vision encoder's facts from config.json and the image processor's section."""
    vision = Section(config.get("vision_config"), f"{where} vision_config")
    depth, heads = vision.count("depth", most=MAX_LAYERS), vision.count("num_heads")
    vision.one_of("hidden_act", "silu")
    vision.one_of("out_hidden_size", text.hidden)
    channels_key = "in_channels" if "in_channels" in vision.data else "in_chans"
    vision.one_of(channels_key, 3)
    hidden = vision.count("hidden_size")
    if hidden % (4 * heads):
        raise vision.fail("hidden_size", f"a multiple of 4 x num_heads ({4 * heads}), for rotary positions")
    full = vision.indices("fullatt_block_indexes")
    if any(index >= depth for index in full):
        raise vision.fail("fullatt_block_indexes", f"indices below depth ({depth})")
    rope = Section(vision.data.get("rope_parameters") or {}, f"{vision.where} rope_parameters")
    rope.one_of("rope_type", "axial")
    facts = VisionFacts(
        depth=depth,
        hidden=hidden,
        heads=heads,
        mlp=vision.count("intermediate_size"),
        patch=vision.count("patch_size", 14),
        temporal_patch=vision.count("temporal_patch_size", 2),
        merge=vision.count("spatial_merge_size", 2),
        window_px=vision.count("window_size", 112),
        full_attention_blocks=full,
        out_hidden=text.hidden,
        in_channels=3,
        tokens_per_second=vision.number("tokens_per_second"),
        image_mean=pixels.numbers("image_mean", CLIP_MEAN),
        image_std=pixels.numbers("image_std", CLIP_STD),
        rope_theta=rope.number("rope_theta", 10_000.0),
    )
    if facts.window_px % (facts.patch * facts.merge):
        raise vision.fail("window_size", f"a multiple of {facts.patch * facts.merge} (patch x merge)")
    _check_processor(pixels, facts)
    return facts


def _check_processor(pixels: Section, vision: VisionFacts) -> None:
    """The image processor must cut pixels the way the encoder reads them."""
    pixels.one_of("patch_size", vision.patch)
    pixels.one_of("temporal_patch_size", vision.temporal_patch)
    pixels.one_of("merge_size", vision.merge)


def pixel_section(folder: Path) -> Section:
    """The image processor's settings: preprocessor_config.json, or today's processor_config.json; else {}."""
    path = folder / "preprocessor_config.json"
    if path.exists():
        return Section(read_json(path), str(path))
    path = folder / "processor_config.json"
    return Section(read_optional_json(path).get("image_processor") or {}, str(path))


def image_budget(pixels: Section) -> ImageBudget | None:
    """The pixel budget, named as in 2025 (`min_pixels`) or today (`size.shortest_edge`); None for neither."""
    size = Section(pixels.data.get("size") or {}, f"{pixels.where} size")
    for section, low, high in (
        (pixels, "min_pixels", "max_pixels"),
        (size, "min_pixels", "max_pixels"),
        (size, "shortest_edge", "longest_edge"),
    ):
        if section.data.get(low) is not None and section.data.get(high) is not None:
            return ImageBudget(section.count(low), section.count(high))
    return None


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
