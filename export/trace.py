"""Trace a graph's module to portable ONNX: opset 24, standard operators, weights named but not yet there."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .graphs.layers import Linear
from .inputs import GraphConfig

OPSET = 24  # the first with TensorScatter, the in-place cache update
TRANSPOSED = "reflectrt.transposed"
"""Metadata key of an initializer whose checkpoint tensor is [out, ...in]."""


def trace(make_module: Callable[[], nn.Module], config: GraphConfig, name: str) -> ir.Model:
    """The portable ONNX model of a module, its initializers named as in the checkpoint and without data.

    `make_module` is called under fake tensors, so a module of any size costs no memory. Weights are bound to the
    checkpoint afterwards (`export/weights.py`); buffers get their values here.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet_exporter():
        module = make_module().eval()
        for parameter in module.parameters():  # buffers stay: angles and pixels are computed in float32
            parameter.data = parameter.data.to(getattr(module, "weight_dtype", config.dtype))
        program = _export(module, config)
    model: ir.Model = program.model
    model.graph.name = name
    _fill_constants(model, module)
    _mark_transposed(model, module)
    _name_initializers(model, str(module.prefix))
    _name_axes(model, config)
    _tidy(model)
    _name_nodes(model)
    return model


def _export(module: nn.Module, config: GraphConfig) -> torch.onnx.ONNXProgram:
    args, shapes = _positional(config.generate_dummy_inputs()), _positional(config.inputs)
    program = torch.onnx.export(
        module,
        args,
        dynamo=True,
        opset_version=OPSET,
        optimize=False,  # constant folding would want the weights' values
        verbose=False,
        input_names=list(config.inputs),
        output_names=list(config.outputs),
        dynamic_shapes=shapes,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program


def _positional(values: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs in `forward`'s order: the caches are one list there."""
    plain = [value for name, value in values.items() if "_cache." not in name]
    caches = [value for name, value in values.items() if "_cache." in name]
    return (*plain, caches) if caches else tuple(plain)


def _fill_constants(model: ir.Model, module: nn.Module) -> None:
    for name, value in module.constants().items():  # type: ignore[operator]
        initializer = model.graph.initializers[name]
        initializer.const_value = ir.tensor(value, name=name)


def _mark_transposed(model: ir.Model, module: nn.Module) -> None:
    """Record which weights are stored [in, out], so that binding knows to transpose the checkpoint's."""
    for name, child in module.named_modules():
        if isinstance(child, Linear):
            model.graph.initializers[f"{name}.weight"].metadata_props[TRANSPOSED] = "true"


def _name_initializers(model: ir.Model, prefix: str) -> None:
    """From a module's parameter names to the checkpoint's tensor names."""
    for name, value in list(model.graph.initializers.items()):
        del model.graph.initializers[name]
        value.name = prefix + name
        model.graph.initializers[value.name] = value


def _name_axes(model: ir.Model, config: GraphConfig) -> None:
    """Give inputs and outputs the contract's axes: the tracer writes derived sizes as expressions."""
    for values, ports in (
        (model.graph.inputs, config.signature.inputs),
        (model.graph.outputs, config.signature.outputs),
    ):
        for value, port in zip(values, ports, strict=True):
            value.shape = ir.Shape(port.axes)


def _tidy(model: ir.Model) -> None:
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        tidy(model)


def _name_nodes(model: ir.Model) -> None:
    """A node that reads a weight is named after it: `model.language_model.layers.0.mlp.up_proj/MatMul`."""
    for node in model.graph:
        names = [v.name for v in node.inputs if v is not None and v.is_initializer() and v.name]
        weights = [name for name in names if name.endswith((".weight", ".bias"))]
        if weights:
            node.name = f"{weights[-1].rpartition('.')[0]}/{node.op_type}"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's notices on packages and axis names that are not ours to mend; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
