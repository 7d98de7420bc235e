"""From how many tokens on is an fp8 decoder's form for long runs the faster one? Both forms, measured in turn.

    python -m reflectrt.bench.gpu.forms --work DIR --out FILE    # 9 GB of random weights in DIR, 20 GB on the GPU

Behind each run one token is fed, and its hidden state compared: what rounded activations change.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...runtime import contract
from ...runtime.bundle import Bundle
from ...runtime.engine import Array
from ...runtime.engines.onnxruntime_cuda import OrtCudaEngine
from ...runtime.stream import Stream
from .measure import timed
from .random_bundle import prepare, prepared_bundle
from .report import cosines, environment

TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 3


class Form:
    """A decoder that runs everything but captured steps in one of its forms."""

    def __init__(self, bundle: Bundle, long: bool) -> None:
        decoder = bundle.manifest.graphs[contract.DECODER]
        form = replace(decoder.long_form, tokens=2) if decoder.long_form and long else None
        graphs = bundle.manifest.graphs | {contract.DECODER: replace(decoder, long_form=form)}
        manifest = replace(bundle.manifest, graphs=graphs)
        self.stream = Stream(OrtCudaEngine(replace(bundle, manifest=manifest)), manifest, max(TOKENS) + 256)
        self.start = self.stream.mark()

    def time(self, embeddings: Array) -> float:
        """Median seconds of a run of embeddings [1, T, D] from an empty cache."""
        engine, merge = self.stream.engine, self.stream.manifest.model.merge
        given, grid = engine.upload(embeddings), (1, merge, merge * embeddings.shape[1])

        def run() -> None:
            self.stream.roll_back(self.start)
            self.stream.feed_visual(given, grid, 1.0, 0)
            self.stream.end_visual(grid, 1.0)
            engine.wait()

        return timed(run, 5)

    def state(self) -> Array:
        """Hidden state [1, D] of a token behind what was fed last."""
        found: Array = self.stream.engine.download(self.stream.feed_tokens([1])).reshape(1, -1)
        return found


def measure(bundle: Bundle) -> dict[str, Any]:
    """Median milliseconds of both forms and the cosine of what they give, by tokens of a run."""
    short, long = Form(bundle, long=False), Form(bundle, long=True)
    random, found = np.random.default_rng(0), {}
    for tokens in TOKENS:
        embeddings = random.normal(size=(1, tokens, bundle.manifest.model.hidden)).astype(np.float32)
        times = [(short.time(embeddings), long.time(embeddings)) for _ in range(ROUNDS)]
        found[str(tokens)] = {
            "short_ms": 1e3 * median(first for first, _ in times),
            "long_ms": 1e3 * median(second for _, second in times),
            "cosine": cosines(short.state(), long.state())[0],
        }
    return found


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = measure(prepared_bundle(prepare(options.work, "fp8")))
    results = {"environment": environment(), "shape": "Qwen2.5-VL-7B, random weights", "by_tokens": found}
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
