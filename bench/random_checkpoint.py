"""Small random checkpoints in the shape of the published ones: real files and tokenizer, meaningless weights.

Tests and benchmarks need models whose outputs *vary*: weights are drawn so that every layer changes its input
by about as much as it carries, norms and biases are not trivial, and logits have a deviation of 3. Then
parity within 1e-3 says something and an argmax is seldom a near-tie (of 1,500 greedy steps one had a gap under 1e-3).
"""

import json
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from .random_tokenizer import REFLECTION_TOKENS, make_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class RandomShape:
    """What a random checkpoint looks like; `hidden` is the decoder's width (None: 16 for each head).

    `mlp` is the width of the decoder's MLP (None: twice `hidden`), `vocab` the rows of the token table (None: some more
    than the tokenizer has tokens).
    """

    heads: int = 3
    kv_heads: int = 1
    layers: int = 2
    hidden: int | None = None
    mlp: int | None = None
    vocab: int | None = None
    vision_depth: int = 3
    tied: bool = False
    legacy_names: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    reflection: Literal["config", "tokenizer", "none"] = "config"
    head: Literal["identity", "linear", "mlp"] = "identity"
    shards: int = 1
    seed: int = 0

    @property
    def width(self) -> int:
        """The decoder's hidden size."""
        return self.hidden or 16 * self.heads

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Half the head's size cut as Qwen2.5-VL cuts 64 into 16, 24, 24."""
        half = self.width // self.heads // 2
        time = half // 4
        return time, (half - time) // 2, half - time - (half - time) // 2


def make_checkpoint(folder: str | Path, *, like: RandomShape = RandomShape(), **changes: Any) -> Path:
    """Write a random checkpoint of shape `like` with `changes` (any field of `RandomShape`); return `folder`.

    The tensors are those of transformers' own class. `legacy_names` writes the tensor names and the flat
    config of the checkpoints published in 2025, otherwise the names of transformers' state dict.
    """
    shape = replace(like, **changes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(with_reflection=shape.reflection != "none")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _config(shape, tokenizer)
    _write_json(folder / "config.json", _flat(config) if shape.legacy_names else config)
    _write_side_files(folder, tokenizer)
    favoured = [tokenizer.token_to_id(token) for token in ("<BOR>", "<|im_end|>")]
    _write_shards(folder, _weights(shape, config, favoured), shape)
    return folder


def _config(shape: RandomShape, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json as transformers 5 saves it."""
    token = tokenizer.token_to_id
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": shape.dtype,
        "tie_word_embeddings": shape.tied,
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "text_config": _text_config(shape, tokenizer),
        "vision_config": _vision_config(shape),
    }
    if shape.reflection == "config":
        names = ("vtk_start_id", "vtk_id", "vtk_end_id")
        config |= {name: token(spelling) for name, spelling in zip(names, REFLECTION_TOKENS, strict=True)}
    return config


def _text_config(shape: RandomShape, tokenizer: Tokenizer) -> dict[str, Any]:
    rows = shape.vocab or -(-tokenizer.get_vocab_size() // 64) * 64 + 64  # Qwen too has more rows than tokens
    return {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp or shape.width * 2,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "vocab_size": rows,
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": list(shape.mrope_section),
        },
    }


def _vision_config(shape: RandomShape) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl_vision",
        "depth": shape.vision_depth,
        "hidden_size": 64,
        "hidden_act": "silu",
        "intermediate_size": 100,
        "num_heads": 4,
        "in_channels": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(1, shape.vision_depth, 3)) or [0],
        "out_hidden_size": shape.width,
        "tokens_per_second": 2,
    }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as Qwen2.5-VL published it in 2025: text at the root, `rope_scaling`, `in_chans`."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "sliding_window": 32768,
        "max_window_layers": text["num_hidden_layers"],
    }
    vision |= {"in_chans": vision.pop("in_channels"), "spatial_patch_size": vision["patch_size"]}
    root = {k: v for k, v in config.items() if k not in ("text_config", "vision_config", "dtype")}
    return text | root | {"torch_dtype": config["dtype"], "vision_config": vision}


def _write_side_files(folder: Path, tokenizer: Tokenizer) -> None:
    """The small files beside the weights, with the values of Qwen2.5-VL-7B-Instruct."""
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    _write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _weights(shape: RandomShape, config: dict[str, Any], favoured: list[int | None]) -> dict[str, torch.Tensor]:
    """Random tensors by the names of transformers' state dict; a tied head is left out."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))  # type: ignore[no-untyped-call]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shape.tied:
        del shapes["lm_head.weight"]
    shapes |= _reflection_head_shapes(shape)
    generator = torch.Generator().manual_seed(shape.seed)
    dtype = getattr(torch, shape.dtype)
    weights = {name: _draw(name, size, generator) for name, size in shapes.items()}
    _favour(weights, favoured)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def _favour(weights: dict[str, torch.Tensor], ids: list[int | None]) -> None:
    """Enlarge the rows that score `<BOR>` and `<|im_end|>`: some per cent of greedy tokens, for tests to see.

    A tied row is also the token's embedding, which then tends to repeat itself: a smaller factor does.
    """
    tied = "lm_head.weight" not in weights
    rows = weights["model.language_model.embed_tokens.weight" if tied else "lm_head.weight"]
    for token in ids:
        if token is not None:
            rows[token] *= 2.0 if tied else 2.5


def _reflection_head_shapes(shape: RandomShape) -> dict[str, tuple[int, ...]]:
    d, wide = shape.width, 2 * shape.width
    if shape.head == "linear":
        return {"reflection_head.weight": (d, d), "reflection_head.bias": (d,)}
    if shape.head == "mlp":
        first = {"reflection_head.0.weight": (wide, d), "reflection_head.0.bias": (wide,)}
        return first | {"reflection_head.2.weight": (d, wide), "reflection_head.2.bias": (d,)}
    return {}


def _draw(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """One float32 tensor. Linear maps keep their input's scale: deviation gain / sqrt(fan-in)."""
    noise = torch.randn(size, generator=generator)
    if name.endswith("bias"):
        return 0.2 * noise
    if len(size) == 1:  # the weight of an RMSNorm
        return 1 + 0.2 * noise
    return noise * _gain(name) / sqrt(noise[0].numel())


def _gain(name: str) -> float:
    """How many times its input's scale a matrix gives back: 3 for logits (from `embed_tokens` where tied).

    In the decoder attention must weigh more than the token itself, and choose rather than average, or answers
    hardly depend on the prompt. With 1.8 for queries and keys and 3 for outputs, other pixels move logits by
    1.3 and float32 is within 1.3e-4 of float64; at 3 and 4 it errs by 1e-2, the model is chaotic. So is a reflection
    head that gives back its input's whole scale, step after step.
    """
    if name.startswith("reflection_head"):
        return 0.5
    if name.startswith("lm_head") or "embed_tokens" in name:
        return 3.0
    if "language_model" not in name:
        return 1.0
    return 3.0 if "o_proj" in name else 1.8 if "q_proj" in name or "k_proj" in name else 1.0


def _write_shards(folder: Path, weights: dict[str, torch.Tensor], shape: RandomShape) -> None:
    """One model.safetensors, or `shards` of them dealt round-robin with an index."""
    named = {_published(name) if shape.legacy_names else name: tensor for name, tensor in weights.items()}
    metadata = {"format": "pt"}
    if shape.shards == 1:
        save_file(named, folder / "model.safetensors", metadata=metadata)
        return
    files = [f"model-{i + 1:05d}-of-{shape.shards:05d}.safetensors" for i in range(shape.shards)]
    weight_map = {name: files[i % shape.shards] for i, name in enumerate(named)}
    for file in files:
        save_file({n: t for n, t in named.items() if weight_map[n] == file}, folder / file, metadata=metadata)
    total = {"total_size": sum(tensor.nbytes for tensor in named.values())}
    _write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})


def _published(name: str) -> str:
    """The name of 2025 for a name of today."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
