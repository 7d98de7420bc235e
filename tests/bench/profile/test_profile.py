"""`reflectrt profile` from the command line: what it prints, writes and refuses."""

import csv
import json
from pathlib import Path

import pytest
from reflectrt.bench.profile import report as reports
from reflectrt.bench.profile.operators import spoken_name
from reflectrt.cli import main

SCHEMA = Path(__file__).parents[3] / "docs" / "profile-schema.json"
QUICK = ("--runs", "2", "--warm-up", "1", "--frames", "4", "--size", "120x90", "--unverified")


def fits(value, schema):
    """Whether a JSON value has the shape that the schema's few keywords ask for."""
    if "anyOf" in schema:
        return any(fits(value, choice) for choice in schema["anyOf"])
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    if schema["type"] in kinds:
        exact = type(value) is bool and schema["type"] != "boolean"
        return isinstance(value, kinds[schema["type"]]) and not exact
    if schema["type"] == "array":
        return isinstance(value, list) and all(fits(item, schema["items"]) for item in value)
    if not isinstance(value, dict):
        return False
    if "properties" in schema:
        known = schema["properties"]
        return set(known) == set(value) and all(fits(value[name], known[name]) for name in known)
    return all(fits(item, schema["additionalProperties"]) for item in value.values())


@pytest.fixture(scope="module")
def written(exports, tmp_path_factory):
    """A profile's JSON and the files beside it."""
    folder = tmp_path_factory.mktemp("profile")
    files = {name: folder / f"profile.{name}" for name in ("trace", "csv", "markdown")}
    outputs = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["profile", str(exports.bundle()), *QUICK, "--json", *outputs]) == 0
    return json.loads(out.getvalue()), files


def test_the_documented_schema_is_the_code_s():
    assert json.loads(SCHEMA.read_text()) == reports.schema()


def test_the_json_has_the_schema(written):
    report, _ = written
    assert fits(report, reports.schema())
    assert (report["format"], report["version"]) == ("reflectrt-profile", [1, 0])


def test_every_stage_is_there_and_adds_up(written):
    profile = written[0]["profiles"][0]
    stages = {stage["name"]: stage for stage in profile["stages"]}
    steps = [f"reflection step #{number}" for number in (1, 2, 3, 4)]
    wanted = ["open bundle", "resize and patch", "vision", "prefill", "question prefill"]
    assert list(stages)[:5] == wanted  # nothing is read where frames are made up
    assert [name for name in stages if name.startswith("reflection")] == steps
    assert all(stage["p50_s"] <= stage["p90_s"] <= stage["p99_s"] for stage in profile["stages"])
    assert all(stages[name]["work"]["float_ops"] > 0 for name in ("vision", "prefill", "head", "answer token", *steps))
    waits = {total["name"]: total for total in profile["totals"]}
    assert waits["follow-up question"]["p50_s"] < waits["cold question"]["p50_s"]
    assert waits["cold question"]["sum_s"] > stages["vision"]["p50_s"]


def test_it_says_where_it_comes_from(written):
    report, _ = written
    profile = report["profiles"][0]
    assert len(profile["bundle"]["sha256"]) == 64
    assert report["environment"]["versions"]["onnxruntime"]
    assert report["environment"]["clock"]
    assert (profile["workload"]["runs"], profile["workload"]["warm_up"]) == (2, 1)
    assert any("UNVERIFIED" in note for note in report["notes"])


def test_memory_and_operators(written):
    profile = written[0]["profiles"][0]
    memory = profile["memory"]
    assert memory["cache_bytes"] == 2 * 2 * 16 * 4 * memory["cache_tokens"]  # 2 layers, one head of 16
    assert min(memory["peaks"].values()) > memory["process_bytes"] // 2
    for ranked in profile["operators"].values():
        assert 0 < len(ranked) <= 10
        assert ranked == sorted(ranked, key=lambda each: -each["seconds"])
    assert any(each["name"].startswith("layers.*.") for each in profile["operators"]["decoder"])
    assert {each["op"] for each in profile["operators"]["embed"]} == {"Gather"}
    assert not any(each["op"] == "GroupQueryAttention" for each in profile["operators"]["head"])


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("model.language_model.layers.12.mlp.down_proj/MatMul_kernel_time", "layers.*.mlp.down_proj"),
        ("model.visual.blocks.3.attn.qkv/Add_kernel_time", "blocks.*.attn.qkv"),
        ("node_GroupQueryAttention_98_kernel_time", "GroupQueryAttention"),
    ],
)
def test_operators_are_named_without_their_layer(event, said):
    op = "GroupQueryAttention" if "Group" in event else "MatMul"
    assert spoken_name(event, op) == said


def test_a_trace_has_stages_inside_what_the_user_waits_for(written):
    trace = json.loads(written[1]["trace"].read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {"open medium", "cold question", "vision", "prefill", "reflect", "decoder"} <= {e["name"] for e in events}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in events)
    wait = next(event for event in events if event["name"] == "cold question")
    step = next(event for event in events if event["name"] == "reflect")
    assert wait["ts"] <= step["ts"]
    assert step["ts"] + step["dur"] <= wait["ts"] + wait["dur"]


def test_tables(written):
    report, files = written
    rows = list(csv.DictReader(files["csv"].open()))
    profile = report["profiles"][0]
    assert [row["stage"] for row in rows] == [each["name"] for each in (*profile["stages"], *profile["totals"])]
    assert "| vision |" in files["markdown"].read_text()


def test_the_terminal_s_width(exports, capsys):
    bundle = str(exports.bundle())
    assert main(["profile", bundle, *QUICK, "--compare", bundle]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.index("what to change") < out.index("milliseconds")
    assert "side by side" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--media", "clip.mp4", "--frames", "3"], "two media"),
        (["--trace", "/no/such/folder/t.json"], "--trace /no/such/folder/t.json cannot be written"),
        (["--csv", "/"], "--csv / cannot be written"),
        (["--plot", "picture.doc"], ".png"),
        (["--device", "cuda"], "--device cpu"),
        (["--threads", "100000"], "or fewer"),
        ([], "--unverified"),
        (["--unverified", "--steps", "100000"], "pass a smaller --steps"),
        (["--unverified", "--frames", "999999999"], "pass a smaller --frames, --size"),
        (["--unverified", "--question-tokens", "999999999"], "pass a smaller --question-tokens"),
        (["--unverified", "--size", "100000x100000"], "megapixels"),
    ],
)
def test_refusals_are_one_line(exports, capsys, options, words):
    assert main(["profile", str(exports.bundle()), *options]) != 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err


def test_a_file_is_read_and_decoded(exports, capsys):
    clip = Path(__file__).parents[3] / "assets" / "media" / "bikes.mp4"
    quick = ("--runs", "1", "--warm-up", "0", "--unverified", "--json")
    assert main(["profile", str(exports.bundle()), "--media", str(clip), *quick]) == 0
    profile = json.loads(capsys.readouterr().out)["profiles"][0]
    stages = {stage["name"]: stage for stage in profile["stages"]}
    assert stages["read and decode"]["p50_s"] > 0
    assert stages["question prefill"]["samples"] >= 5


def test_a_picture(exports, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "p.png"
    assert main(["profile", str(exports.bundle()), *QUICK, "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_pytorch_beside_it_gives_the_same_answer(exports, capsys):
    options = ["--against", str(exports.checkpoint()), "--json"]
    assert main(["profile", str(exports.bundle()), *QUICK, *options]) == 0
    published, plain = json.loads(capsys.readouterr().out)["rivals"]
    assert published["same_option"] and plain["same_option"]
    assert published["step_s"] > plain["step_s"]
    assert published["decoder_runs"] == plain["decoder_runs"] == 1 + 1 + 4 + 1 + 4  # prompt, BOR, K, EOR, prefix
