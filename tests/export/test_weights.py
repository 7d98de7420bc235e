from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from exports import Exports, Silence
from onnx_ir import ExternalTensor
from reflectrt.export import bundle as bundles
from reflectrt.export.bundle import ExportPlan, export_bundle
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.export.weights import source_name
from reflectrt.runtime.errors import ExportError

TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
NAMES = ["small", "grouped-3-tied", "linear-head", "mlp-head", "bfloat16"]


def weights(folder: Path) -> Iterable[tuple[str, ir.Value]]:
    """Every weight of a bundle's graphs, by its checkpoint name."""
    for file in sorted(folder.glob("*.onnx")):
        for name, value in ir.load(file).graph.initializers.items():
            if name.endswith((".weight", ".bias")):
                yield name, value


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_holds_every_tensor_of_the_checkpoint_as_float32(exports: Exports, name: str) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint(name))
    seen = set()
    for weight, value in weights(exports.bundle(name)):
        source = source_name(checkpoint, weight)
        tensor = checkpoint.read(source).float()
        if tensor.ndim > 1 and weight not in (TABLE, HEAD):  # what MatMul reads from the right is stored [in, out]
            tensor = tensor.flatten(1).t()
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), tensor.numpy(), err_msg=weight)
        seen.add(source)
    assert seen == set(checkpoint.tensors)


def test_a_bfloat16_checkpoint_has_values_that_bfloat16_can_hold(exports: Exports) -> None:
    (table,) = (value for name, value in weights(exports.bundle("bfloat16")) if name == TABLE)
    assert table.const_value is not None
    found = table.const_value.numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert Checkpoint.open(exports.checkpoint("bfloat16")).dtype == "bfloat16"


def stored(folder: Path, name: str) -> ExternalTensor:
    (value,) = (value for weight, value in weights(folder) if weight == name)
    assert isinstance(value.const_value, ExternalTensor)
    return value.const_value


def test_a_tied_head_is_the_embedding_s_bytes(exports: Exports) -> None:
    folder = exports.bundle("grouped-3-tied")
    head, table = stored(folder, HEAD), stored(folder, TABLE)
    assert (head.location, head.offset, head.length) == (table.location, table.offset, table.length)
    assert head.location == "embed.onnx.data"
    assert not (folder / "head.onnx.data").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_tied_head_is_the_embedding_s_bytes_where_activations_have_16_bits(
    exports: Exports, tmp_path: Path, precision: str
) -> None:
    """In float16 for both: a head in bfloat16 would round logits to 8 bits."""
    checkpoint = Checkpoint.open(exports.checkpoint("grouped-3-tied"))
    export_bundle(checkpoint, tmp_path / "bundle", ExportPlan("cuda", precision), Silence())
    head, table = (stored(tmp_path / "bundle", name) for name in (HEAD, TABLE))
    assert (head.location, head.offset) == (table.location, table.offset)
    assert head.dtype == table.dtype == ir.DataType.FLOAT16


def test_an_untied_head_has_bytes_of_its_own(exports: Exports) -> None:
    folder = exports.bundle("small")
    assert stored(folder, HEAD).location == "head.onnx.data"
    assert stored(folder, TABLE).location == "embed.onnx.data"


def test_external_weights_stay_in_the_folder(exports: Exports) -> None:
    for _, value in weights(exports.bundle()):
        if isinstance(tensor := value.const_value, ExternalTensor):
            assert Path(tensor.location).name == str(tensor.location)


def test_a_tensor_that_no_graph_uses_stops_the_export(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    stray = dict(checkpoint.tensors) | {"model.visual.extra.weight": next(iter(checkpoint.tensors.values()))}
    odd = replace(checkpoint, tensors=MappingProxyType(stray))
    monkeypatch.setattr(bundles, "trace", lambda *arguments: exports.traced(arguments[2]))
    with pytest.raises(ExportError, match=r"do not use 1 tensors of the checkpoint: model\.visual\.extra\.weight"):
        export_bundle(odd, tmp_path / "bundle", ExportPlan(), Silence())
    assert not list(tmp_path.iterdir())


def test_a_weight_that_the_checkpoint_lacks_stops_the_export(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint())
    less = {name: ref for name, ref in checkpoint.tensors.items() if name != "model.language_model.norm.weight"}
    odd = replace(checkpoint, tensors=MappingProxyType(less))
    monkeypatch.setattr(bundles, "trace", lambda *arguments: exports.traced(arguments[2]))
    with pytest.raises(ExportError, match=r"model\.language_model\.norm\.weight"):
        export_bundle(odd, tmp_path / "bundle", ExportPlan(), Silence())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ExportPlan(target="cuda"), "target cuda does not run fp32"),
        (ExportPlan(precision="fp16"), "target cpu does not run fp16 yet.*fp32"),
        (ExportPlan(precision="int8"), "int8 needs the ranges of activations.*--recipe"),
        (ExportPlan(max_context=0), "--max-context 0"),
        (ExportPlan(max_context=128_001), "--max-context 128001 is more .* pass 128000 or less"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_at_once(
    exports: Exports, tmp_path: Path, plan: ExportPlan, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_bundle(Checkpoint.open(exports.checkpoint()), tmp_path / "bundle", plan, Silence())
    assert not list(tmp_path.iterdir())


def test_weights_read_are_the_tensors(exports: Exports) -> None:
    checkpoint = Checkpoint.open(exports.checkpoint("bfloat16"))
    assert checkpoint.read(TABLE).dtype == torch.bfloat16
