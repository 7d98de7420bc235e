"""The small model: Qwen2.5-VL's architecture unchanged, 15 million parameters instead of 8 billion."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from .initial import initialise_decoder
from .row import token_id
from .scenes import REFLECTION
from .tokens import REFLECTION_TOKENS, SPECIAL_TOKENS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # preprocessor_config.json of Qwen2.5-VL
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SHARD_LIMIT = "15MB"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# transformers annotates neither its models nor their configs strictly enough for mypy: they are Any from here on.
make_qwen: Any = Qwen2_5_VLForConditionalGeneration
make_fast_tokenizer: Any = PreTrainedTokenizerFast


@dataclass(frozen=True)
class SmallModel:
    """Sizes of the reference checkpoint; heads are 64 wide in both towers."""

    hidden: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 1024
    vision_hidden: int = 256
    vision_depth: int = 6
    vision_heads: int = 4
    vision_mlp: int = 768
    full_attention: tuple[int, ...] = (2, 5)
    # Theta is 1e6 in the 7B model. There the width's frequencies, the lowest, turn once in 35,000 positions;
    # a model trained for minutes would not learn to see them. At 100 the whole range is 6 to 600 positions.
    rope_theta: float = 100.0
    mrope_section: tuple[int, int, int] = (8, 12, 12)
    max_positions: int = 32768

    def config(self, tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
        """The checkpoint's `config.json`, reflection's token ids included."""
        config = Qwen2_5_VLConfig(
            text_config=self._text(tokenizer),
            vision_config=self._vision(),
            image_token_id=token_id(tokenizer, "<|image_pad|>"),
            video_token_id=token_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
            tie_word_embeddings=False,
        )
        config.vtk_image_steps = config.vtk_video_steps = REFLECTION
        config.vtk_start_id, config.vtk_id, config.vtk_end_id = (
            token_id(tokenizer, name) for name in ("<BOR>", "<VR>", "<EOR>")
        )
        return config

    def _text(self, tokenizer: Tokenizer) -> dict[str, object]:
        return {
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "mrope_section": list(self.mrope_section),
            },
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        }

    def _vision(self) -> dict[str, object]:
        return {
            "depth": self.vision_depth,
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_mlp,
            "num_heads": self.vision_heads,
            "out_hidden_size": self.hidden,
            "fullatt_block_indexes": list(self.full_attention),
            "tokens_per_second": 2,
            "patch_size": 14,
            "window_size": 112,
        }


def new_model(sizes: SmallModel, tokenizer: Tokenizer, seed: int) -> Any:
    """Random weights, float32, on the CPU; the same for the same seed."""
    torch.manual_seed(seed)
    model = make_qwen(sizes.config(tokenizer))
    initialise_decoder(model)
    return model


def load_model(folder: Path) -> tuple[Any, Tokenizer]:
    """Open a checkpoint in Hugging Face format, the small one or a published one, as float32.

    A plain Qwen2.5-VL gets the three tokens of reflection.
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.token_to_id(REFLECTION_TOKENS[0]) is None:
        add_reflection(model, tokenizer)
    return model, tokenizer


@torch.no_grad()
def add_reflection(model: Any, tokenizer: Tokenizer) -> None:
    """Give a plain model the three tokens; their rows start at the mean of the old ones, as the authors' do."""
    old = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in REFLECTION_TOKENS])
    ids = [token_id(tokenizer, name) for name in REFLECTION_TOKENS]
    if max(ids) >= model.config.text_config.vocab_size:
        model.resize_token_embeddings(max(ids) + 1)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        table[ids] = table[:old].mean(0)
    model.config.vtk_start_id, model.config.vtk_id, model.config.vtk_end_id = ids


def save_model(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a checkpoint as the published ones are: bfloat16 safetensors, tokenizer, template, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    halved = make_qwen(model.config).to(torch.bfloat16)
    halved.load_state_dict(model.state_dict())
    halved.save_pretrained(folder, max_shard_size=SHARD_LIMIT)
    fast = make_fast_tokenizer(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=model.config.text_config.max_position_embeddings,
    )
    fast.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(), indent=2) + "\n")


def _preprocessor() -> dict[str, object]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 4 * 784,
        "max_pixels": 16384 * 784,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
