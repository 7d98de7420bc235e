"""An engine that watches: it runs a float bundle as ever, and takes note of what goes into every Linear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from ..runtime.bundle import Bundle
from ..runtime.engine import Array, Buffer
from ..runtime.engines.onnxruntime import HostBuffer, OrtCpuEngine, OrtGraph
from ..runtime.errors import NumericError
from ..runtime.manifest import GraphEntry
from .instrument import CHOSEN, instrument, max_port, rows_port
from .observations import Observations
from .sources import Sources, array_of


class ObservingEngine(OrtCpuEngine):
    """ONNX Runtime's CPU provider over instrumented graphs."""

    text_apart = True
    """Text is fed by itself: a run's rows are of one source."""

    def __init__(self, bundle: Bundle, observations: Observations, seed: int = 0) -> None:
        """`seed` draws the rows that are kept."""
        self.observations, self.random = observations, np.random.default_rng(seed)
        self.readers: dict[str, dict[str, list[str]]] = {}
        """By graph and observed tensor, the weights that read it."""
        self.sources = Sources()
        super().__init__(bundle)

    def _load(self, bundle: Bundle, name: str, entry: GraphEntry, options: ort.SessionOptions) -> OrtGraph:
        file = bundle.file(entry.file)
        target = file.with_suffix(".observed.onnx")
        self.readers[name] = instrument(file, target)
        if not self.readers[name]:
            target = file
        session = ort.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
        return ObservedGraph(session, name, self)


class ObservedGraph(OrtGraph):
    """An instrumented session with its binding."""

    def __init__(self, session: ort.InferenceSession, name: str, engine: ObservingEngine) -> None:
        super().__init__(session, name)
        self._engine = engine

    def run(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run, and take note."""
        self._engine.sources.note(self._name, outputs)
        names = list(self._engine.readers[self._name])
        if not names:
            super().run(inputs, outputs)
            return
        reservoir = self._engine.observations.reservoir(self._name, self._engine.sources.of(self._name, inputs))
        count = _rows(inputs)
        chosen, keys = reservoir.draw(count, self._engine.random)
        self._binding.clear_binding_outputs()
        for name in names:
            self._binding.bind_output(max_port(name), "cpu")
            self._binding.bind_output(rows_port(name), "cpu")
        super().run({**inputs, CHOSEN: HostBuffer(chosen)}, outputs)
        found = [value.numpy() for value in self._binding.get_outputs()[: 2 * len(names)]]
        for name, largest in zip(names, found[::2], strict=True):
            self._engine.observations.widen(name, _finite(largest, name))
        reservoir.add(count, keys, dict(zip(names, found[1::2], strict=True)))
        self._note_cache(inputs, outputs, count)

    def _note_cache(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], count: int) -> None:
        """Channel maxima of the rows that this run wrote to each cache, [kv_heads * head_dim]."""
        for name, buffer in outputs.items():
            if "_cache_out." not in name:
                continue
            first = int(array_of(inputs["past_length"])[0])
            written = array_of(buffer)[0, :, first : first + count]
            self._engine.observations.widen(name, np.abs(written).max(axis=1).ravel())


def _rows(inputs: Mapping[str, Buffer]) -> int:
    """Rows of a graph's first input: grids x patches, tokens."""
    first = next(iter(inputs.values()))
    return first.shape[0] * first.shape[1]


def _finite(largest: Array, name: str) -> Array:
    if not np.isfinite(largest).all():
        raise NumericError(f"the input of {name} has NaN or infinity; check the checkpoint with `reflectrt verify`")
    return largest
