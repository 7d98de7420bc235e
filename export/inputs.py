"""What each graph is traced with: Optimum exporter configurations, one per graph, over `runtime/contract.py`.

Optimum's `ExporterConfig` is the field's way to describe an export: named inputs with their free axes, dummy inputs
made from a normalized configuration, and the tolerance that validation holds the result to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from optimum.exporters.base import ExporterConfig
from optimum.utils.input_generators import DummyInputGenerator
from optimum.utils.normalized_config import NormalizedConfig

from ..runtime import contract
from ..runtime.contract import Signature

# Sizes at trace time. They must differ from each other and from 0 and 1, which the tracer would take for constants.
TRACE_SIZES = {"tokens": 6, "capacity": 24, "grids": 2, "patches": 16, "windows": 3, "visual_tokens": 4}


@dataclass(frozen=True)
class GraphFacts:
    """The configuration object that Optimum normalizes: one graph's signature and the activation type."""

    signature: Signature
    dtype: torch.dtype


class GraphInputs(DummyInputGenerator):  # type: ignore[misc]  # optimum is untyped
    """Makes a dummy tensor for any input that a signature names."""

    def __init__(self, task: str, normalized_config: NormalizedConfig, **_: Any) -> None:
        self.task = task
        self.ports = {port.name: port for port in normalized_config.signature.inputs}
        self.dtype = normalized_config.dtype

    def supports_input(self, input_name: str) -> bool:
        """Whether the signature names this input."""
        return input_name in self.ports

    def generate(self, input_name: str, *_: Any, **__: Any) -> torch.Tensor:
        """A tensor of the input's type with `TRACE_SIZES` for its free axes; the contract fixes the types."""
        port = self.ports[input_name]
        shape = [TRACE_SIZES[axis] if isinstance(axis, str) else axis for axis in port.axes]
        dtype = self.dtype if port.dtype == contract.FLOAT else getattr(torch, port.dtype)
        return torch.zeros(shape, dtype=dtype)


class GraphConfig(ExporterConfig):  # type: ignore[misc]  # optimum is untyped
    """One graph of the contract as an Optimum exporter configuration."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (GraphInputs,)
    # Largest absolute difference of any output from PyTorch in float32. Hidden states are of order 1 to 10.
    ATOL_FOR_VALIDATION: ClassVar[float] = 1e-3

    def __init__(self, signature: Signature, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(GraphFacts(signature, dtype), task="feature-extraction")
        self.signature, self.dtype = signature, dtype

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Free axes of each input, by position."""
        return free_axes(self.signature.inputs)

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Free axes of each output, by position."""
        return free_axes(self.signature.outputs)


def free_axes(ports: tuple[contract.Port, ...]) -> dict[str, dict[int, str]]:
    """`{input: {axis position: axis name}}`, the form that Optimum and torch.onnx take."""
    return {port.name: {i: axis for i, axis in enumerate(port.axes) if isinstance(axis, str)} for port in ports}
