"""Being here puts tests/ on the import path, so that every test can `from checkpoints import ...`."""

import os
from pathlib import Path

import pytest
from exports import Exports

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # A core for each worker: libraries that each start a thread for every core only wait for one another.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all of its processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _own_cache(shared: Path) -> None:
    """What the runtime keeps between runs goes into the run's folder, also from subprocesses."""
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")


@pytest.fixture(scope="session")
def exports(shared: Path) -> Exports:
    """The random checkpoints and their bundles; each is made once a run."""
    return Exports(shared / "exports")
