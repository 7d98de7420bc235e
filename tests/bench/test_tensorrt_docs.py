"""What docs/ say of TensorRT is what was measured and planned."""

import json
from pathlib import Path

import pytest
from reflectrt.bench import jetson_memory
from reflectrt.bench.jetson_memory import MODELS, MODULES, frames, largest_capacity, memory
from reflectrt.bench.tensorrt_table import table

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "bench/results/tensorrt_builds.json").read_text())


def test_every_architecture_built_every_graph_in_every_precision() -> None:
    plans = RESULTS["plans"]
    assert [plan for plan in plans if plan["error"]] == []
    built = {(plan["shape"], plan["graph"], plan["precision"], plan["architecture"]) for plan in plans}
    fp8_less = {"SM80", "SM86"}
    whole = ("vision", "embed", "decoder", "head")
    for shape, graphs in (("small", whole), ("reference", whole), ("7B layer", ("vision", "decoder"))):
        for graph in graphs:
            for precision in ("fp16", "bf16", "int8", "fp8", "int4"):
                wanted = {"SM80", "SM86", "SM89", "SM120", "SM121"} - (fp8_less if precision == "fp8" else set())
                assert {row[3] for row in built if row[:3] == (shape, graph, precision)} == wanted


def test_the_tables_in_the_docs_are_those_that_the_scripts_print() -> None:
    assert "\n".join(table(RESULTS)) in (ROOT / "docs/tensorrt.md").read_text()
    jetson = (ROOT / "docs/jetson.md").read_text()
    assert "\n".join(jetson_memory.needs_table()) in jetson
    assert "\n".join(jetson_memory.modules_table()) in jetson


@pytest.mark.parametrize(("name", "billions"), [("3B", 3.755), ("7B", 8.292)])
def test_the_published_models_have_their_parameters(name: str, billions: float) -> None:
    """As the model cards count them; the 3B model's tied table is planned for twice."""
    model = MODELS[name]
    tied = model.table if name == "3B" else 0
    assert (model.linears + model.table + model.others - tied) / 1e9 == pytest.approx(billions, abs=0.001)


def test_a_larger_cache_needs_more_and_the_largest_that_fits_does_fit() -> None:
    for model in MODELS.values():
        totals = [memory(model, "int4", rows, 4096).total for rows in (2048, 8192, 20_000, 32_768)]
        assert totals == sorted(totals) and totals[0] < totals[-1]
    rows = largest_capacity(MODELS["7B"], "int4", MODULES["Orin Nano 8 GB"], 4096)
    free = 8 * 10**9 - jetson_memory.SYSTEM_BYTES
    assert (
        memory(MODELS["7B"], "int4", rows, 4096).total <= free < memory(MODELS["7B"], "int4", rows + 1024, 4096).total
    )
    assert largest_capacity(MODELS["7B"], "bf16", 16, 4096) == 0


def test_frames_leave_room_for_the_question() -> None:
    assert frames(256) == 0 and frames(4096) == 30
