"""Record how a float bundle decodes samples, so that quantized graphs can be run over the very same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime import contract
from ..runtime.bundle import Bundle
from ..runtime.engine import Array, Buffer
from ..runtime.engines.onnxruntime import HostBuffer, OrtCpuEngine, OrtGraph
from ..runtime.session import Model
from .samples import Sample
from .sources import Sources, array_of

VisionInputs = dict[str, Array]


@dataclass(frozen=True)
class Recording:
    """One sample's single-pass decode: everything that went into the decoder, in order."""

    embeddings: Array
    """[tokens, hidden], fed-back hidden states among them."""
    positions: Array
    """[3, tokens]"""
    visual: Array
    """[tokens] bool: rows that vision made."""
    judged: Array
    """Indices of the rows after which a hidden state matters: every reflection step and the last."""
    vision: tuple[VisionInputs, ...]
    """Inputs of the vision runs whose outputs are the visual rows, in order."""


def record(bundle: Bundle, samples: Sequence[Sample], **media: Any) -> list[Recording]:
    """Decode the samples with a float bundle, by multiple choice, and keep what went in; `media` as `Model.open`."""
    engine = RecordingEngine(bundle)
    model = Model(bundle, engine)
    reflect = "always" if bundle.manifest.reflection else "off"
    recordings = []
    for sample in samples:
        engine.clear()
        options = sample.options or ("yes", "no")
        model.open(*sample.media, **media).ask(sample.question, options, reflect=reflect)
        recordings.append(engine.recording())
    return recordings


class RecordingEngine(OrtCpuEngine):
    """ONNX Runtime's CPU provider, keeping copies of what its decoder and vision graphs read."""

    text_apart = True
    """Text is fed by itself: a run's rows are of one source."""

    def __init__(self, bundle: Bundle) -> None:
        self.sources = Sources()
        self.clear()
        super().__init__(bundle)

    def clear(self) -> None:
        """Begin another sample."""
        self._chunks: list[tuple[str, Array, Array]] = []
        self._vision: list[VisionInputs] = []

    def graph(self, name: str) -> OrtGraph:
        """A graph by its name in the contract, recorded."""
        return _Recorded(super().graph(name), name, self)

    def note(self, name: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """A graph runs."""
        self.sources.note(name, outputs)
        if name == contract.VISION:
            self._vision.append({port: array_of(buffer).copy() for port, buffer in inputs.items()})
        if name == contract.DECODER:
            kind = self.sources.of(name, inputs)
            embeddings, positions = array_of(inputs["embeddings"])[0], array_of(inputs["positions"])
            self._chunks.append((kind, embeddings.copy(), positions.copy()))

    def recording(self) -> Recording:
        """What was kept since `clear`."""
        kinds = np.concatenate([np.full(len(rows), kind) for kind, rows, _ in self._chunks])
        judged = np.append(np.flatnonzero(kinds == "hidden"), len(kinds) - 1)
        return Recording(
            embeddings=np.concatenate([rows for _, rows, _ in self._chunks]),
            positions=np.concatenate([positions for _, _, positions in self._chunks], axis=1),
            visual=kinds == "visual",
            judged=judged,
            vision=tuple(self._vision),
        )


class _Recorded(OrtGraph):
    def __init__(self, graph: OrtGraph, name: str, engine: RecordingEngine) -> None:
        self._graph, self._name, self._engine = graph, name, engine

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Note and run."""
        self._engine.note(self._name, inputs, outputs)
        self._graph.run(inputs, outputs)


class Replay:
    """Graphs of a bundle over recorded inputs; each may be exchanged for another session."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, OrtGraph]) -> None:
        self._model, self._graphs = bundle.manifest.model, graphs

    def logits(self, recording: Recording, changed: Mapping[str, OrtGraph]) -> Array:
        """Logits [judged, vocab] with some graphs exchanged. Fed-back states stay those of the recording."""
        graphs = {**self._graphs, **changed}
        embeddings = recording.embeddings
        if contract.VISION in changed:
            embeddings = embeddings.copy()
            embeddings[recording.visual] = self._vision(graphs[contract.VISION], recording)
        hidden = self._decode(graphs[contract.DECODER], embeddings, recording.positions)[:, recording.judged]
        logits = np.empty((1, len(recording.judged), self._model.vocab), np.float32)
        inputs = {"hidden_post_norm": HostBuffer(np.ascontiguousarray(hidden))}
        graphs[contract.HEAD].run(inputs, {"logits": HostBuffer(logits)})
        return logits.reshape(logits.shape[1:])

    def _vision(self, graph: OrtGraph, recording: Recording) -> Array:
        """[visual tokens, hidden]."""
        found = []
        for inputs in recording.vision:
            grids, patches = inputs["patches"].shape[:2]
            out = np.empty((grids, patches // self._model.merge**2, self._model.hidden), np.float32)
            graph.run({port: HostBuffer(array) for port, array in inputs.items()}, {"embeddings": HostBuffer(out)})
            found.append(out.reshape(-1, out.shape[-1]))
        return np.concatenate(found)

    def _decode(self, graph: OrtGraph, embeddings: Array, positions: Array) -> Array:
        """Hidden states [1, tokens, hidden] of one run over everything."""
        tokens = len(embeddings)
        shape = (1, self._model.kv_heads, tokens, self._model.head_dim)
        names = contract.cache_names(self._model.layers)
        caches = {name: HostBuffer(np.empty(shape, np.float32)) for name in names}
        hidden = np.empty((1, *embeddings.shape), np.float32)
        inputs = {
            "embeddings": HostBuffer(embeddings[None]),
            "positions": HostBuffer(positions),
            "past_length": HostBuffer(np.zeros(1, np.int64)),
        }
        outputs = {"hidden_post_norm": HostBuffer(hidden)} | {
            contract.cache_output(name): buffer for name, buffer in caches.items()
        }
        graph.run({**inputs, **caches}, outputs)
        return hidden
