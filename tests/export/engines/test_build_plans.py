"""Plans for GPUs that are not here: what is built, what the manifest says of it, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from exports import Exports
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.errors import BundleError, CompatibilityError, ResourceError, UsageError
from reflectrt.runtime.manifest import dump, parse
from tensorrt_bundles import Quiet, copied, tensorrt_bundle

pytest.importorskip("tensorrt_rtx")
from reflectrt.export.engines import plans
from reflectrt.export.engines.plans import BuildOptions, build_plans

pytestmark = pytest.mark.trt

SM86 = BuildOptions(("SM86",), capacities=(1024,), max_patches=1024, chunk_tokens=256)


def test_every_graph_gets_a_plan_that_the_manifest_records(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    progress = Quiet()
    built = build_plans(open_bundle(folder), SM86, progress)
    found = open_bundle(folder).manifest
    assert found == built == parse(dump(built))
    assert {plan.graph for plan in found.plans} == set(found.graphs) == {name.split()[0] for name in progress.stages}
    for plan in found.plans:
        assert (plan.library, plan.architecture, plan.cuda) == ("tensorrt-rtx", "SM86", "13")
        assert found.files[plan.file].size > plan.weight_bytes > 10_000
        assert len(plan.scratch_bytes) == len(plan.profiles)
    decoder = next(plan for plan in found.plans if plan.graph == "decoder")
    assert decoder.capacity == 1024 and decoder.profiles[0]["tokens"] == (1, 1, 256)
    assert progress.steps > 0


def test_plans_add_up_and_the_same_one_is_replaced(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    for options in (SM86, SM86, replace(SM86, architectures=("SM120",), capacities=(512, 2048))):
        manifest = build_plans(open_bundle(folder), options, Quiet())
    assert sorted((plan.architecture, plan.capacity) for plan in manifest.plans if plan.graph == "decoder") == [
        ("SM120", 512),
        ("SM120", 2048),
        ("SM86", 1024),
    ]
    assert len(manifest.plans) == 4 + 5


def test_weight_streaming_is_off_unless_asked_for(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    assert not any(plan.weight_streaming for plan in build_plans(open_bundle(folder), SM86, Quiet()).plans)
    built = build_plans(open_bundle(folder), replace(SM86, weight_streaming=True), Quiet())
    assert all(plan.weight_streaming and plan.weight_bytes > 10_000 for plan in open_bundle(folder).manifest.plans)
    older = json.loads(dump(built))
    older["version"] = [1, 2]
    for plan in older["plans"]:
        del plan["weight_streaming"]
    assert not any(plan.weight_streaming for plan in parse(json.dumps(older)).plans)


def test_an_altered_plan_is_refused(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    manifest = build_plans(open_bundle(folder), SM86, Quiet())
    file = folder / manifest.plans[0].file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="is altered"):
        open_bundle(folder)


def test_a_plan_outside_the_bundle_or_without_a_hash_is_refused(exports: Exports, tmp_path: Path) -> None:
    folder = copied(tensorrt_bundle(exports, "bf16"), tmp_path)
    manifest = build_plans(open_bundle(folder), SM86, Quiet())
    for name, complaint in (("../other.plan", "outside the bundle"), ("other.plan", "no hash for other.plan")):
        plans = (replace(manifest.plans[0], file=name), *manifest.plans[1:])
        (folder / "manifest.json").write_text(dump(replace(manifest, plans=plans)))
        with pytest.raises(BundleError, match=complaint):
            open_bundle(folder)


def test_an_unknown_architecture_names_those_there_are(exports: Exports) -> None:
    bundle = open_bundle(tensorrt_bundle(exports, "bf16"))
    with pytest.raises(CompatibilityError, match=r"does not build for SM87; pass one of SM75, SM80, SM86"):
        build_plans(bundle, replace(SM86, architectures=("SM87",)), Quiet())


def test_fp8_is_refused_where_there_is_none(exports: Exports) -> None:
    bundle = open_bundle(tensorrt_bundle(exports, "fp8"))
    with pytest.raises(CompatibilityError, match=r"SM86 has no FP8.*--precision int8 or int4"):
        build_plans(bundle, SM86, Quiet())


def test_too_little_memory_is_said_before_anything_is_built(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "available_bytes", lambda: 100_000)
    progress = Quiet()
    with pytest.raises(ResourceError, match=r"building vision takes .* add swap"):
        build_plans(open_bundle(tensorrt_bundle(exports, "bf16")), SM86, progress)
    assert progress.stages == []


def test_a_capacity_beyond_the_context_is_wrong_usage(exports: Exports) -> None:
    with pytest.raises(UsageError, match=r"--capacity 4096 .* 2048"):
        build_plans(open_bundle(tensorrt_bundle(exports, "bf16")), replace(SM86, capacities=(4096,)), Quiet())


def test_a_bundle_for_another_target_is_refused(exports: Exports) -> None:
    with pytest.raises(CompatibilityError, match="exported for cpu; export with --target tensorrt"):
        build_plans(open_bundle(exports.bundle()), SM86, Quiet())


def test_version_compatible_plans_are_tensorrts_alone(exports: Exports) -> None:
    from reflectrt.runtime.errors import ExportError

    with pytest.raises(ExportError, match="drop --version-compatible"):
        build_plans(open_bundle(tensorrt_bundle(exports, "bf16")), replace(SM86, version_compatible=True), Quiet())


def test_the_device_needs_no_torch_to_build() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'optimum', 'onnx_ir', 'onnxscript']));"
        "import reflectrt.commands.build, reflectrt.export.engines.plans"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
