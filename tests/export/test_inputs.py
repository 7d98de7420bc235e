import pytest
import torch
from fakes import FACTS
from optimum.exporters.base import ExporterConfig
from optimum.utils.normalized_config import NormalizedConfig
from reflectrt.export.inputs import TRACE_SIZES, GraphConfig
from reflectrt.runtime.contract import FLOAT, signatures

SIGNATURES = signatures(FACTS.sizes())


def test_a_graph_is_an_optimum_exporter_configuration() -> None:
    config = GraphConfig(SIGNATURES["decoder"])
    assert isinstance(config, ExporterConfig)
    assert isinstance(config._normalized_config, NormalizedConfig)
    assert 0 < config.ATOL_FOR_VALIDATION <= 1e-3


def test_vision_s_free_axes_by_hand() -> None:
    config = GraphConfig(SIGNATURES["vision"])
    assert config.inputs == {
        "patches": {0: "grids", 1: "patches"},
        "patch_positions": {0: "patches"},
        "windows": {0: "windows"},
        "window_slots": {0: "patches"},
    }
    assert config.outputs == {"embeddings": {0: "grids", 1: "visual_tokens"}}


def test_the_decoder_s_free_axes_by_hand() -> None:
    config = GraphConfig(SIGNATURES["decoder"])
    caches = {f"{kind}_cache.{layer}": {2: "capacity"} for layer in (0, 1) for kind in ("key", "value")}
    assert config.inputs == {"embeddings": {1: "tokens"}, "positions": {1: "tokens"}, "past_length": {}} | caches
    updated = {name.replace("cache", "cache_out"): axes for name, axes in caches.items()}
    assert config.outputs == {"hidden_post_norm": {1: "tokens"}} | updated
    assert list(config.inputs)[3:5] == ["key_cache.0", "value_cache.0"]


@pytest.mark.parametrize("graph", SIGNATURES)
def test_every_graph_s_ports_are_the_contract_s_in_order(graph: str) -> None:
    config = GraphConfig(SIGNATURES[graph])
    assert list(config.inputs) == [port.name for port in SIGNATURES[graph].inputs]
    assert list(config.outputs) == [port.name for port in SIGNATURES[graph].outputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("graph", SIGNATURES)
def test_dummy_inputs_have_the_signature_s_shapes_and_types(graph: str, dtype: torch.dtype) -> None:
    made = GraphConfig(SIGNATURES[graph], dtype).generate_dummy_inputs()
    assert list(made) == [port.name for port in SIGNATURES[graph].inputs]
    for port in SIGNATURES[graph].inputs:
        wanted = dtype if port.dtype == FLOAT else getattr(torch, port.dtype)
        assert made[port.name].dtype == wanted
        assert tuple(made[port.name].shape) == tuple(TRACE_SIZES.get(axis, axis) for axis in port.axes)  # type: ignore[arg-type]


def test_sizes_at_trace_time_are_told_apart() -> None:
    assert len(set(TRACE_SIZES.values())) == len(TRACE_SIZES)
    assert min(TRACE_SIZES.values()) > 1
