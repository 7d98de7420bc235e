"""A made-up model's manifest, and an engine that needs no model: what the runtime's bookkeeping is tested with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from reflectrt.runtime import contract
from reflectrt.runtime.engine import Array
from reflectrt.runtime.engines.onnxruntime import HostBuffer
from reflectrt.runtime.manifest import (
    FORMAT_MAJOR,
    FORMAT_MINOR,
    FileEntry,
    GraphEntry,
    ImagePixels,
    Manifest,
    ModelFacts,
    PromptTokens,
    Reflection,
    Source,
    VideoPixels,
)

BOR, VR, EOR, STOP = 50, 51, 52, 60
FACTS = ModelFacts(
    hidden=4,
    layers=2,
    kv_heads=1,
    head_dim=2,
    vocab=64,
    channels=3,
    patch=14,
    temporal_patch=2,
    merge=2,
    window=8,
    tokens_per_second=2.0,
    max_context=4000,
)
PROMPT = PromptTokens(
    opening=(1, 2),
    visual_open=(3,),
    visual_close=(4,),
    closing=(5, 6),
    answer_prefix=(7, 8, 9),
    letters=tuple(range(10, 36)),
    image_pad=40,
    video_pad=41,
    stop=(STOP, 61),
)
REFLECTION = Reflection(BOR, VR, EOR, "identity", image_steps=1, video_steps=4)


def make_manifest(reflection: Reflection | None = REFLECTION, **changes: Any) -> Manifest:
    """A manifest that is right in itself; its files are not there."""
    manifest = Manifest(
        format="reflectrt-bundle",
        version=(FORMAT_MAJOR, FORMAT_MINOR),
        target="cpu",
        precision="fp32",
        activation="float32",
        model=FACTS,
        prompt=PROMPT,
        reflection=reflection,
        image=ImagePixels(3136, 12845056),
        video=VideoPixels(2.0, 512, 50176, 460800, 15680000),
        graphs={},
        source=Source("made-up", "00", "float32"),
        tools={"python": "3.11"},
        engine={"onnxruntime": "1.31"},
        recipe=None,
        verification=None,
        plans=(),
        files={"tokenizer.json": FileEntry(0, "0" * 64)},
    )
    graphs = {
        name: GraphEntry(f"{name}.onnx", signature.inputs, signature.outputs)
        for name, signature in manifest.expected_signatures().items()
    }
    return replace(manifest, graphs=graphs, **changes)


@dataclass
class FakeEngine:
    """A model one can reckon by hand. A token's embedding is (id, 0, 0, 0); the decoder gives its input back with the
    second value one higher; the head wants the token that `follow` has for the id, or for (id, second value).

    So a state fed back keeps the id of `<BOR>` and counts the steps. Keys and values hold what was fed.
    """

    follow: Mapping[Any, int] = field(default_factory=dict)
    free: int = 2**40
    device: str = "cpu"
    chunk_tokens: int = 512
    vision_patches: int = 4096
    cache_capacities: tuple[int, ...] = ()
    text_apart = False
    activation: np.dtype = field(default_factory=lambda: np.dtype(np.float32))
    runs: list[tuple[str, dict[str, Array]]] = field(default_factory=list)
    broken: str | None = None
    """The graph whose output is NaN."""

    def graph(self, name: str) -> "FakeGraph":
        return FakeGraph(self, name)

    def empty(self, shape: Sequence[int], dtype: str = contract.FLOAT) -> HostBuffer:
        return HostBuffer(np.full(shape, np.nan, np.float32) if dtype == contract.FLOAT else np.zeros(shape, dtype))

    def zeros(self, shape: Sequence[int], dtype: str = contract.FLOAT) -> HostBuffer:
        return HostBuffer(np.zeros(shape, np.float32 if dtype == contract.FLOAT else dtype))

    def upload(self, array: Array) -> HostBuffer:
        return HostBuffer(np.ascontiguousarray(array))

    def download(self, buffer: HostBuffer) -> Array:
        return buffer.array.copy()

    def copy(self, source: HostBuffer, target: HostBuffer) -> None:
        target.array[:, :, : source.shape[2]] = source.array

    def wait(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.free

    def of(self, name: str) -> list[dict[str, Array]]:
        """The inputs of every run of a graph."""
        return [inputs for graph, inputs in self.runs if graph == name]


@dataclass
class FakeGraph:
    engine: FakeEngine
    name: str

    def run(self, inputs: Mapping[str, HostBuffer], outputs: Mapping[str, HostBuffer]) -> None:
        given = {name: buffer.array for name, buffer in inputs.items()}
        made = {name: buffer.array for name, buffer in outputs.items()}
        self.engine.runs.append((self.name, {name: array.copy() for name, array in given.items()}))
        getattr(self, f"_{self.name}")(given, made)
        if self.engine.broken == self.name:
            next(iter(made.values()))[...] = np.nan

    def _embed(self, given: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        made["embeddings"][...] = 0
        made["embeddings"][..., 0] = given["token_ids"]

    def _decoder(self, given: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        made["hidden_post_norm"][...] = given["embeddings"]
        made["hidden_post_norm"][..., 1] += 1
        past, tokens = int(given["past_length"][0]), given["embeddings"].shape[1]
        for name in contract.cache_names(FACTS.layers):
            cache = made[contract.cache_output(name)]
            assert cache is given[name], "the cache is updated in place"
            cache[0, 0, past : past + tokens] = given["embeddings"][0, :, :2]

    def _reflect(self, given: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        made["embeddings"][...] = given["hidden_post_norm"]
        made["embeddings"][..., 2] += 1

    def _head(self, given: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        made["logits"][...] = 0 * given["hidden_post_norm"].sum()  # NaN goes through
        if np.isnan(made["logits"]).any():
            return
        token, steps = (int(value) for value in given["hidden_post_norm"][0, 0, :2])
        wanted = self.engine.follow.get((token, steps), self.engine.follow.get(token, 0))
        made["logits"][0, 0, wanted] = 5
