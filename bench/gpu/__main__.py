"""`python -m reflectrt.bench.gpu --work DIR --out FILE`: the whole measurement, about two minutes on an H200.

DIR gets the 7B shape with random weights (17 GB; kept for the next run), FILE the results as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ...runtime.contract import FLOAT
from ...runtime.memory import cache_bytes
from ...runtime.prompt import Question
from ...runtime.session import Model
from ..reference_inputs import Medium
from ..synthetic import random_medium
from ..torch_loop import PUBLISHED_DUMMIES
from .ceilings import measure_ceilings
from .measure import GRID, OPTIONS, QUESTION, STEPS, Answers, measure_answers, measure_growth, measure_stages
from .random_bundle import open_prepared, prepare
from .report import TOKENS, WEIGHT_BYTES, answers_report, cosines, environment, gains, rival_report, stages_report
from .rival import Rival
from .shape import TEXT_7B, VISION_7B
from .weights import draw, places, transformers_tensors

FLOATS, QUANTIZED = ("bf16", "fp16"), ("int8-weights", "fp8", "int4")
"""Precisions; transformers runs beside the first ones only, over the same weights."""


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="python -m reflectrt.bench.gpu", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for 17 GB of random weights")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--precision", choices=(*FLOATS, *QUANTIZED), default="bf16")
    parser.add_argument("--kv-cache", choices=("int8", "fp8"), help="of a quantized precision (default: bf16)")
    arguments = parser.parse_args()
    _say("graphs and weights")
    folder = prepare(arguments.work, arguments.precision, arguments.kv_cache)
    results = measure(folder)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(folder: Path) -> dict[str, Any]:
    """Everything, one part after the other."""
    _say("ceilings")
    ceilings = measure_ceilings()
    _say("loading")
    start = perf_counter()
    before = torch.cuda.mem_get_info()[0]
    model = open_prepared(folder)
    loading_s, gpu_bytes = perf_counter() - start, before - torch.cuda.mem_get_info()[0]
    _say("stages")
    stages = measure_stages(model)
    _say("answers")
    medium = random_medium("video", GRID, seed=1)
    ours = measure_answers(model, medium)
    _say("growth")
    growth = measure_growth(model)
    facts = model.manifest.model
    results = {
        "environment": environment(),
        "shape": "Qwen2.5-VL-7B, random weights",
        "precision": model.manifest.precision,
        "kv_cache": facts.cache_dtype,
        "kv_cache_gb": cache_bytes(facts, TOKENS, itemsize=2) / 1e9,
        "grid": GRID,
        "ceilings": vars(ceilings),
        "loading_s": loading_s,
        "weights_gb": sum(entry.size for entry in model.manifest.files.values()) / 1e9,
        "gpu_bytes": gpu_bytes,
        "stages": stages_report(
            stages, ceilings, WEIGHT_BYTES[model.manifest.precision], 2 if facts.cache_dtype == FLOAT else 1
        ),
        "answers": answers_report(ours),
        "growth_by_frames": growth,
    }
    if model.manifest.precision in FLOATS:
        results |= _beside_transformers(folder, model, medium, ours)
    return results


def _beside_transformers(folder: Path, model: Model, medium: Medium, ours: Answers) -> dict[str, Any]:
    """The rival's times over the same weights, our gains, and how near the hidden states are."""
    _say("transformers")
    rival = make_rival(folder)
    prompt, forced = rival_prompt(model)
    rival.answer(medium, prompt, forced, STEPS, 0)
    plain, thoughts = rival.answer(medium, prompt, forced, STEPS, 0)
    published, _ = rival.answer(medium, prompt, forced, STEPS, PUBLISHED_DUMMIES)
    return {
        "transformers": {"published": rival_report(published), "without_dummies": rival_report(plain)},
        "gains": gains(ours, published, plain),
        "reflection_cosines": cosines(ours.reflection, thoughts),
    }


def make_rival(folder: Path) -> Rival:
    """transformers' model with the bundle's weights."""
    tensors = (pair for place in places(folder) for pair in transformers_tensors(place, draw(place)))
    return Rival(TEXT_7B, VISION_7B, tensors)


def rival_prompt(model: Model) -> tuple[tuple[list[int], list[int]], list[int]]:
    """Token ids before and behind the video, and those that the authors' loop forces one by one."""
    prompt, reflection = model.manifest.prompt, model.manifest.reflection
    if reflection is None:
        raise ValueError("the skeleton has no reflection tokens")
    question = model.tokenizer.encode(Question(QUESTION, OPTIONS).prompt("video"))
    before = [*prompt.opening, *prompt.visual_open]
    behind = [*prompt.visual_close, *question, *prompt.closing]
    return (before, behind), [reflection.begin, reflection.end, *prompt.answer_prefix]


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
