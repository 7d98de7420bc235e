"""`python -m reflectrt.bench.gpu.genai --work DIR --out FILE`: our decoder and onnxruntime-genai's.

Both of one shape, in bfloat16 over random weights, in turns in one process: 18,432 tokens of text as the prompt, then
one token after the other behind it, head and choice of the likeliest included. Vision and reflection are ours alone.
Needs `onnxruntime-genai-cuda`. DIR gets 17 GB of our weights and twice 15 GB of theirs, where they are not there yet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime_genai as og
import torch
from onnxruntime_genai.models.builder import create_model, parse_extra_options
from transformers import Qwen2Config, Qwen2ForCausalLM

from ...export.facts import TextFacts
from ...runtime.session import Model
from ...runtime.stream import Stream
from .measure import GRID
from .random_bundle import open_prepared, prepare
from .report import environment
from .shape import MAX_CONTEXT, TEXT_7B

PROMPT = GRID[0] * GRID[1] * GRID[2] // 4
"""Tokens, as many as the visual ones of the other measurements."""
RUNS, TOKENS = 3, 30
SEED = 1


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="python -m reflectrt.bench.gpu.genai", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for random weights")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--cuda-graph", action="store_true", help="let onnxruntime-genai capture its steps")
    arguments = parser.parse_args()
    ours, theirs = prepare(arguments.work, "bf16"), arguments.work / "genai"
    if not (theirs / "genai_config.json").exists():
        write_rival(arguments.work / "qwen2", theirs, ours / "tokenizer.json")
    results = {
        "environment": environment() | {"onnxruntime-genai": importlib.metadata.version("onnxruntime-genai-cuda")},
        "shape": "Qwen2.5-VL-7B's decoder, random weights, bf16",
        "prompt_tokens": PROMPT,
        "cuda_graph": arguments.cuda_graph,
    } | measure(open_prepared(ours), open_rival(theirs, arguments.cuda_graph))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def write_rival(
    checkpoint: Path, folder: Path, tokenizer: Path, device: str = "cuda", text: TextFacts = TEXT_7B
) -> None:
    """A random checkpoint of the shape, and what onnxruntime-genai's own builder makes of it."""
    config = Qwen2Config(
        hidden_size=text.hidden,
        intermediate_size=text.mlp,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads,
        vocab_size=text.vocab,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    model.bfloat16().save_pretrained(checkpoint)
    del model
    (checkpoint / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    kind = ("bf16", "cuda") if device == "cuda" else ("fp32", "cpu")
    places = ("", str(checkpoint), str(folder), *kind, str(checkpoint / "cache"))
    create_model(*places, **parse_extra_options(*places, ["prune_lm_head=true"]))


def open_rival(folder: Path, cuda_graph: bool) -> og.Model:
    """onnxruntime-genai's model on the GPU."""
    config = og.Config(str(folder))
    config.clear_providers()
    config.append_provider("cuda")
    config.set_provider_option("cuda", "enable_cuda_graph", str(int(cuda_graph)))
    return og.Model(config)


def measure(ours: Model, theirs: og.Model) -> dict[str, Any]:
    """Median seconds of prompt and of a token, of both in turns."""
    ids = np.random.default_rng(SEED).integers(1000, 100_000, PROMPT).tolist()
    runs = [(run_ours(ours, ids), run_theirs(theirs, ids)) for _ in range(RUNS + 1)][1:]
    return {name: _medians([run[index] for run in runs]) for index, name in enumerate(("reflectrt", "genai"))}


def _medians(runs: list[tuple[float, list[float]]]) -> dict[str, float]:
    return {
        "prompt_s": median(prompt for prompt, _ in runs),
        "token_s": median(token for _, tokens in runs for token in tokens),
    }


def run_ours(model: Model, ids: list[int]) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each after it."""
    stream = Stream(model.engine, model.manifest, len(ids) + TOKENS + 1)

    def choose(tokens: list[int]) -> int:
        return int(stream.logits(stream.feed_tokens(tokens)).argmax())

    token, prompt_s = _timed(lambda: choose(ids))
    times = []
    for _ in range(TOKENS):
        token, seconds = _timed(lambda: choose([token]))  # noqa: B023  # called at once
        times.append(seconds)
    return prompt_s, times


def run_theirs(model: og.Model, ids: list[int]) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each after it."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + TOKENS + 1, do_sample=False)
    generator = og.Generator(model, parameters)

    def first() -> None:
        generator.append_tokens(np.array(ids, np.int32))
        following()

    def following() -> None:
        generator.generate_next_token()
        generator.get_next_tokens()

    _, prompt_s = _timed(first)
    return prompt_s, [_timed(following)[1] for _ in range(TOKENS)]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = perf_counter()
    found = work()
    return found, perf_counter() - start


def table(results: dict[str, Any]) -> str:
    """One row a runtime."""
    lines = ["| | prompt | token |", "|---|---|---|"]
    for name, found in (("onnxruntime-genai", results["genai"]), ("ReflectRT", results["reflectrt"])):
        lines.append(f"| {name} | {found['prompt_s'] * 1e3:.0f} ms | {found['token_s'] * 1e3:.1f} ms |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
