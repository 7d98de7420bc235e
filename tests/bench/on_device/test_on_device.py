"""The script for whoever has the hardware, end to end up to the step that needs the GPU."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exports import Exports
from orin_plan import PLAN
from reflectrt.bench.on_device import layers as on_device_layers
from reflectrt.bench.on_device.compare import Outcome, compare, cosine, expected
from reflectrt.bench.on_device.layers import plan_layers
from reflectrt.bench.on_device.steps import run_steps
from reflectrt.bench.on_device.timing import time_model
from reflectrt.runtime import load
from reflectrt.runtime.errors import NumericError, ResourceError, UsageError
from tensorrt_bundles import copied, tensorrt_bundle


def test_it_builds_and_stops_where_a_gpu_is_needed(exports: Exports, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from reflectrt.bench.on_device.__main__ import main

    bundle = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    out = tmp_path / "result.json"
    options = ["--against", str(exports.bundle()), "--out", str(out), "--architecture", "SM86", "--capacity", "1024"]
    assert main([str(bundle), *options]) == 1
    steps = {step["name"]: step for step in json.loads(out.read_text())["steps"]}
    assert [step["status"] for step in steps.values()] == [*["done"] * 3, "failed", *["not reached"] * 3]
    assert {plan["graph"] for plan in steps["build"]["figures"]["plans"]} == {"vision", "embed", "decoder", "head"}
    assert "NVIDIA" in steps["gpu"]["reason"]
    assert steps["machine"]["figures"]["library"].startswith("tensorrt-rtx 1.")


def test_a_bundle_agrees_with_itself_and_not_with_another(exports: Exports) -> None:
    wanted = expected(exports.bundle())
    model = load(exports.bundle())
    figures: Any = compare(model, wanted)
    assert figures["vision_cosine"] > 0.999999 and figures["same_option"] == figures["media"] == 3
    assert len(figures["reflection_cosines"]) == 3 * 4
    other = [Outcome(found.embeddings[::-1, ::-1].copy(), found.reflection, found.scores) for found in wanted]
    with pytest.raises(NumericError, match="does not agree"):
        compare(model, other)


def test_timings_are_those_of_the_answers(exports: Exports) -> None:
    figures: Any = time_model(load(exports.bundle()), frames=4, runs=1)
    assert figures["visual_tokens"] == 2 * 256 and figures["tokens_per_second"] > 0
    assert figures["first_answer_s"]["total"] > figures["next_answer_s"]["total"] > 0


@pytest.mark.parametrize(
    ("text", "layers"), [('{"Layers": [{"Name": "a"}]}', {"Layers": [{"Name": "a"}]}), ("Layer a", "Layer a")]
)
def test_layers_are_sent_back_as_the_inspector_tells_them(
    monkeypatch: pytest.MonkeyPatch, text: str, layers: object
) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda form: text if form == "json" else "")
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    monkeypatch.setattr(on_device_layers, "load_plan", lambda *_: engine)
    library: Any = SimpleNamespace(api=SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json")))
    assert plan_layers(library, Path("bundle"), [PLAN]) == {"decoder.plan": layers}


def test_after_a_failure_nothing_is_run() -> None:
    def fail() -> dict[str, object]:
        raise ResourceError("no memory; buy some")

    results = run_steps({"a": lambda: {"x": 1}, "b": fail, "c": fail})
    assert [(r.status, r.reason) for r in results] == [
        ("done", ""),
        ("failed", "no memory; buy some"),
        ("not reached", ""),
    ]


def test_bundles_of_different_models_are_told_apart() -> None:
    with pytest.raises(UsageError, match="same checkpoint"):
        cosine(np.ones(3, np.float32), np.ones(4, np.float32))


def test_the_device_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'optimum', 'onnx_ir']));"
        "import reflectrt.bench.on_device.__main__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
