"""Which plan a machine runs, and what is said where there is none."""

from dataclasses import replace
from typing import Any

import pytest
from fakes import make_manifest
from orin_plan import PLAN
from reflectrt.runtime.contract import signatures
from reflectrt.runtime.errors import BundleError, CompatibilityError
from reflectrt.runtime.plans import Machine, check_plan, choose, runnable

ORIN = Machine("tensorrt", "10.16.1.11", "SM87")


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        (ORIN, True),
        (replace(ORIN, architecture="SM110"), False),
        (replace(ORIN, version="10.16.2.1"), False),
        (replace(ORIN, library="tensorrt-rtx"), False),
        (replace(ORIN, lean=True), False),
    ],
)
def test_a_plan_runs_on_its_own_architecture_and_version_only(machine: Machine, fits: bool) -> None:
    assert runnable(PLAN, machine) == fits


@pytest.mark.parametrize(
    ("version", "lean", "fits"),
    [("10.16.1.11", True, True), ("10.17.0.3", False, True), ("10.15.1.29", False, False), ("11.4.0.106", True, False)],
)
def test_a_version_compatible_plan_runs_on_later_versions_of_its_major(version: str, lean: bool, fits: bool) -> None:
    plan = replace(PLAN, version_compatible=True)
    assert runnable(plan, replace(ORIN, version=version, lean=lean)) == fits


def test_the_smallest_cache_with_room_is_chosen() -> None:
    plans = [replace(PLAN, capacity=rows) for rows in (16384, 4096, 2048)]
    assert choose(plans, ORIN, "decoder", 3000).capacity == 4096


def test_a_cache_too_small_names_the_option() -> None:
    with pytest.raises(CompatibilityError, match="--capacity 5000"):
        choose([PLAN], ORIN, "decoder", 5000)


def test_another_architecture_says_what_is_there_and_what_to_run() -> None:
    with pytest.raises(CompatibilityError, match=r"SM110.*has plans for SM87 with tensorrt 10.16.1.11; run") as caught:
        choose([PLAN], replace(ORIN, architecture="SM110"), "decoder")
    assert "reflectrt build" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": "encoder"},
        {"profiles": ()},
        {"scratch_bytes": ()},
        {"profiles": ({"grids": (1, 1, 1)},)},
        {"profiles": ({"tokens": (4, 2, 8)},)},
        {"profiles": ({"tokens": (1, 1, 2**40)},)},
        {"capacity": 0},
        {"weight_bytes": -1},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    wanted = signatures(make_manifest().model.sizes())
    check_plan(PLAN, wanted["decoder"])
    forged = replace(PLAN, **changes)
    with pytest.raises(BundleError, match=r"decoder.plan.*reflectrt build"):
        check_plan(forged, wanted.get(forged.graph))
