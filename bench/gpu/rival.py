"""The rival on the same GPU: transformers' own model with sdpa in bf16, and the authors' loop over it.

One decoder run a token, forced ones too; as published, every step also encodes two dummy pictures whose results are
multiplied by zero (`bench/torch_loop.py` has the same loop for the CPU).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from ...export.facts import TextFacts, VisionFacts
from ..reference_inputs import Medium, text_positions, visual_positions
from ..torch_loop import DUMMY_GRID

Prompt = tuple[list[int], list[int]]
"""Token ids before and behind the medium."""


@dataclass
class RivalTimes:
    """Seconds of one multiple-choice answer."""

    vision_s: float = 0.0
    prefill_s: float = 0.0
    step_s: list[float] = field(default_factory=list)
    dummy_s: list[float] = field(default_factory=list)
    total_s: float = 0.0


class Rival:
    """transformers' Qwen2.5-VL of a shape, on the GPU."""

    def __init__(
        self, text: TextFacts, vision: VisionFacts, tensors: Iterable[tuple[str, Tensor]], device: str = "cuda"
    ) -> None:
        """Build the model and copy `tensors`, named as in its state dict, over its weights."""
        self.vision_facts, self.device = vision, torch.device(device)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        with self.device:
            self.model = Qwen2_5_VLForConditionalGeneration(_config(text, vision))  # type: ignore[no-untyped-call]
        torch.set_default_dtype(default)
        self.model.set_attn_implementation("sdpa")
        self.model.train(False)
        self._load(tensors)

    @torch.no_grad()
    def _load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        state = self.model.state_dict()
        absent = with_thirds(state)
        for name, values in tensors:
            if name in absent:
                target = absent.pop(name)
                target.copy_(values.reshape(target.shape))
        if absent:
            raise ValueError(f"no weights for {sorted(absent)[:5]}")

    @torch.no_grad()
    def answer(
        self, medium: Medium, prompt: Prompt, forced: list[int], steps: int, dummies: int
    ) -> tuple[RivalTimes, NDArray[np.float32]]:
        """Answer a question about a medium: prompt before and behind it, `forced` tokens around K reflection steps.

        Returns the times, and the hidden states [K, D] after each reflection step.
        """
        times, start = RivalTimes(), _now()
        embeddings = self.encode(medium)
        times.vision_s = _now() - start
        begin = _now()
        cache, position, hidden = self._prefill(embeddings, medium, prompt)
        times.prefill_s = _now() - begin
        thoughts = []
        for item in [*forced[:1], *[None] * steps, *forced[1:]]:
            begin = _now()
            for _ in range(dummies):
                self._dummy()
            times.dummy_s.append(_now() - begin)
            begin = _now()
            embedded = hidden if item is None else self._embed([item])
            hidden = self._forward(embedded, text_positions(position, 1), cache)
            position += 1
            times.step_s.append(_now() - begin)
            if item is None:
                thoughts.append(hidden[0].float().cpu())
        self.model.lm_head(hidden)
        times.total_s = _now() - start
        return times, torch.stack(thoughts).numpy()

    @torch.no_grad()
    def encode(self, medium: Medium) -> Tensor:
        """Embeddings [tokens, D] of a medium's patches."""
        pixels = _normalised(torch.from_numpy(medium.patches).to(self.device), self.vision_facts)
        grid = torch.tensor([medium.grid], device=self.device)
        embeddings: Tensor = self.model.model.visual(pixels, grid_thw=grid).pooler_output
        return embeddings

    def _prefill(self, embeddings: Tensor, medium: Medium, prompt: Prompt) -> tuple[DynamicCache, int, Tensor]:
        before, behind = prompt
        visual = visual_positions(len(before), medium, self.vision_facts)
        position = int(visual.max()) + 1
        positions = torch.cat(
            [text_positions(0, len(before)), visual, text_positions(position, len(behind))],
            dim=1,
        )
        parts = torch.cat([self._embed(before), embeddings, self._embed(behind)])
        cache = DynamicCache(config=self.model.config.get_text_config())
        return cache, position + len(behind), self._forward(parts, positions, cache)

    def _embed(self, ids: list[int]) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(torch.tensor(ids, device=self.device))
        return embedded

    def _forward(self, embeddings: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self.model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None].to(self.device),
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0, -1:]

    def _dummy(self) -> None:
        grid = torch.tensor([DUMMY_GRID], device=self.device)
        pixels = torch.zeros(int(grid.prod()), self.vision_facts.patch_values, dtype=torch.bfloat16, device=self.device)
        self.model.model.visual(pixels, grid_thw=grid)


def with_thirds(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name; queries, keys and values of the vision encoder apart, as views: `....qkv.0.weight`."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        thirds = tensor.chunk(3) if stem.endswith(".qkv") else ()
        found |= {f"{stem}.{place}.{kind}": third for place, third in enumerate(thirds)} or {name: tensor}
    return found


def _normalised(patches: Tensor, vision: VisionFacts) -> Tensor:
    """`reference_inputs.normalise` on the GPU, in bf16 at the end."""
    per_channel = vision.patch_values // vision.in_channels
    pixels = patches.float().reshape(-1, vision.in_channels, per_channel)
    mean, std = (
        torch.tensor(values, device=patches.device)[:, None] for values in (vision.image_mean, vision.image_std)
    )
    return ((pixels / 255 - mean) / std).flatten(1).to(torch.bfloat16)


def _config(text: TextFacts, vision: VisionFacts) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        tie_word_embeddings=text.tied,
        text_config={
            "model_type": "qwen2_5_vl_text",
            "hidden_size": text.hidden,
            "intermediate_size": text.mlp,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "vocab_size": text.vocab,
            "rms_norm_eps": text.rms_eps,
            "max_position_embeddings": text.max_positions,
            "use_sliding_window": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.mrope_section),
            },
        },
        vision_config={
            "model_type": "qwen2_5_vl_vision",
            "depth": vision.depth,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.mlp,
            "num_heads": vision.heads,
            "out_hidden_size": vision.out_hidden,
            "window_size": vision.window_px,
            "fullatt_block_indexes": list(vision.full_attention_blocks),
            "patch_size": vision.patch,
            "temporal_patch_size": vision.temporal_patch,
            "spatial_merge_size": vision.merge,
            "tokens_per_second": int(vision.tokens_per_second),
        },
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
