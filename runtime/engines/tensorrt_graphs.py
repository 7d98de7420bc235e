"""Plans as graphs of the runtime: any shape that a profile takes, single steps recorded, large batches in pieces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from ..contract import Port, Signature, cache_output
from ..engine import Buffer
from ..errors import LimitError, ReflectRTError
from ..plans import EnginePlan
from .cuda_graph import CapturedWork, CapturingGpu
from .device_memory import DeviceBuffer, device_buffer

MAX_RECORDED = 8
"""Recorded steps that are kept, one for each KV cache lately used."""

Shape = tuple[int, ...]
Buffers = Mapping[str, Buffer]


class Host(Protocol):
    """What a graph needs of its engine."""

    gpu: CapturingGpu

    def new_context(self, loaded: Any, profile: int) -> Any:
        """An execution context of a profile."""

    def buffer(self, shape: Shape, dtype: str) -> DeviceBuffer:
        """An uninitialised buffer."""

    def load(self, plan: EnginePlan) -> TensorRTGraph:
        """Deserialise a plan."""


def sizes(ports: Iterable[Port], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The free axes' sizes in these inputs."""
    return {
        axis: size
        for port in ports
        for axis, size in zip(port.axes, shapes[port.name], strict=True)
        if isinstance(axis, str)
    }


class TensorRTGraph:
    """One plan with an execution context for each profile."""

    def __init__(self, host: Host, plan: EnginePlan, loaded: Any, signature: Signature) -> None:
        self.plan, self._host, self._loaded, self._signature = plan, host, loaded, signature
        self._contexts: dict[int, Any] = {}

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run from bound inputs into bound outputs; done when it returns, so that stages are timed aright."""
        self.execute(self.bound(inputs, outputs))
        self._host.gpu.wait()

    def bound(self, inputs: Buffers, outputs: Buffers) -> Any:
        """The context of the profile that takes these inputs, with shapes and addresses set."""
        shapes = {name: device_buffer(buffer).shape for name, buffer in inputs.items()}
        context = self._context(self._profile(shapes))
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ReflectRTError(f"{self.plan.graph} refuses {name} {list(shape)}; please report this")
        for name, buffer in {**inputs, **outputs}.items():
            if not context.set_tensor_address(name, device_buffer(buffer).address):
                raise ReflectRTError(f"{self.plan.graph} refuses the buffer of {name}; please report this")
        return context

    def execute(self, context: Any) -> None:
        """Queue a run of a bound context."""
        if not context.execute_async_v3(self._host.gpu.stream):
            raise ReflectRTError(f"{self.plan.graph} failed on the GPU; restart, and report it if it stays")

    def _profile(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these shapes."""
        found = sizes(self._signature.inputs, shapes)
        for index, profile in enumerate(self.plan.profiles):
            if all(least <= found[axis] <= most for axis, (least, _, most) in profile.items()):
                return index
        free = ", ".join(f"{axis} {size}" for axis, size in found.items() if axis != "capacity")
        raise LimitError(
            f"the plan of {self.plan.graph} takes no run of {free}; pass a smaller --max-pixels, or run "
            "`reflectrt build` with a larger --max-patches"
        )

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            self._contexts[profile] = self._host.new_context(self._loaded, profile)
        return self._contexts[profile]


class TensorRTVision:
    """The vision encoder: more grids than a profile takes go in pieces."""

    def __init__(self, graph: TensorRTGraph) -> None:
        self._graph = graph

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run from bound inputs into bound outputs."""
        patches, embeddings = inputs["patches"], outputs["embeddings"]
        most = self._most_grids(patches.shape[1])
        for first in range(0, patches.shape[0], most):
            count = min(most, patches.shape[0] - first)
            piece = dict(inputs) | {"patches": _grids(patches, first, count)}
            self._graph.run(piece, {"embeddings": _grids(embeddings, first, count)})

    def _most_grids(self, patches: int) -> int:
        """Grids of so many patches that one run takes; 1 where no profile takes even one, which the run then says."""
        taking = [p["grids"][2] for p in self._graph.plan.profiles if p["patches"][0] <= patches <= p["patches"][2]]
        return max(taking, default=1)


def _grids(buffer: Buffer, first: int, count: int) -> Buffer:
    rest = buffer.shape[1:]
    return buffer.view((count, *rest), first * prod(rest))


@dataclass
class Step:
    """A recorded run of one token: the buffers that it reads and writes, and the recording."""

    inputs: dict[str, DeviceBuffer]
    hidden: DeviceBuffer
    work: CapturedWork


class TensorRTDecoder:
    """The decoder by capacity: the plan whose cache has as many rows as the buffers have. One is loaded at a time.

    A recording holds addresses. So runs of one token go through small fixed buffers: embedding, position and length are
    copied in, the hidden state out, and a recording belongs to one KV cache.
    """

    def __init__(self, host: Host, plans: Iterable[EnginePlan]) -> None:
        self._host = host
        self._plans = {plan.capacity: plan for plan in plans}
        self._loaded: TensorRTGraph | None = None
        self._steps: OrderedDict[Shape, Step] = OrderedDict()

    def run(self, inputs: Buffers, outputs: Buffers) -> None:
        """Run from bound inputs into bound outputs."""
        caches = {name: device_buffer(buffer) for name, buffer in inputs.items() if "_cache." in name}
        graph = self._graph(next(iter(caches.values())).shape[2])
        if inputs["embeddings"].shape[1] > 1:
            graph.run(inputs, outputs)
            return
        key = tuple(buffer.address for buffer in caches.values())
        if key not in self._steps:
            self._steps[key] = self._record(graph, inputs, caches)
            if len(self._steps) > MAX_RECORDED:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        self._replay(self._steps[key], inputs, outputs)

    def _graph(self, rows: int) -> TensorRTGraph:
        """The plan for a cache of so many rows."""
        if self._loaded is None or self._loaded.plan.capacity != rows:
            self._steps.clear()
            self._loaded = None  # its weights go before others come
            self._loaded = self._host.load(self._plans[rows])
        return self._loaded

    def _record(self, graph: TensorRTGraph, inputs: Buffers, caches: Mapping[str, DeviceBuffer]) -> Step:
        fixed = {name: self._copy_of(device_buffer(buffer)) for name, buffer in inputs.items() if name not in caches}
        hidden = self._host.buffer(fixed["embeddings"].shape, fixed["embeddings"].dtype)
        updated = {cache_output(name): buffer for name, buffer in caches.items()}
        context = graph.bound({**fixed, **caches}, {"hidden_post_norm": hidden, **updated})
        graph.execute(context)  # TensorRT prepares itself in its first run, which no recording may hold
        return Step(fixed, hidden, self._host.gpu.capture(lambda: graph.execute(context)))

    def _copy_of(self, buffer: DeviceBuffer) -> DeviceBuffer:
        copy = self._host.buffer(buffer.shape, buffer.dtype)
        self._host.gpu.copy(buffer.address, copy.address, buffer.nbytes)
        return copy

    def _replay(self, step: Step, inputs: Buffers, outputs: Buffers) -> None:
        gpu = self._host.gpu
        for name, fixed in step.inputs.items():
            gpu.copy(device_buffer(inputs[name]).address, fixed.address, fixed.nbytes)
        step.work.replay()
        gpu.copy(step.hidden.address, device_buffer(outputs["hidden_post_norm"]).address, step.hidden.nbytes)
        gpu.wait()
