import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import Exports
from reflectrt.export import staging
from reflectrt.export.staging import staged
from reflectrt.runtime.bundle import open_bundle
from reflectrt.runtime.errors import ExportError, ResourceError

MANIFEST = '{"format": "reflectrt-bundle"}'


def fill(target: Path, text: str = "new", force: bool = False, needed_bytes: int = 0) -> None:
    """Publish a made-up bundle whose weights say `text`."""
    with staged(target, needed_bytes, force) as folder:
        (folder / "weights").write_text(text)
        (folder / "manifest.json").write_text(MANIFEST)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_staged_is_published_whole_and_alone(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle", 0, force=False) as folder:
        (folder / "manifest.json").write_text("x")
        assert not (tmp_path / "bundle").exists()
        assert folder.parent == tmp_path
    assert left(tmp_path) == ["bundle"]
    assert left(tmp_path / "bundle") == ["manifest.json"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged(tmp_path / "bundle", 0, force=False) as folder:
        (folder / "manifest.json").write_text("x")
        raise KeyError
    assert left(tmp_path) == []


def test_an_existing_bundle_is_kept_without_force(tmp_path: Path) -> None:
    fill(tmp_path / "bundle", "old")
    with pytest.raises(ExportError, match="exists; pass --force"):
        fill(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "weights").read_text() == "old"


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    fill(tmp_path / "bundle", "old")
    (tmp_path / "bundle" / "stray").touch()
    fill(tmp_path / "bundle", force=True)
    assert left(tmp_path) == ["bundle"]
    assert left(tmp_path / "bundle") == ["manifest.json", "weights"]
    assert (tmp_path / "bundle" / "weights").read_text() == "new"


def test_an_error_under_force_keeps_the_old_bundle(tmp_path: Path) -> None:
    fill(tmp_path / "bundle", "old")
    with pytest.raises(KeyError), staged(tmp_path / "bundle", 0, force=True):
        raise KeyError
    assert (tmp_path / "bundle" / "weights").read_text() == "old"
    assert left(tmp_path) == ["bundle"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "empty folder", "dangling link"])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, kind: str, force: bool) -> None:
    target = tmp_path / "precious"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "thesis.tex").write_text("mine")
    before = left(tmp_path)
    with pytest.raises(ExportError, match=r"exists and is not a bundle|is a link"):
        fill(target, force=force)
    assert left(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_a_bundle_is_not_written_through(tmp_path: Path, force: bool) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ExportError, match="is a link"):
        fill(tmp_path / "link", force=force)
    assert left(tmp_path) == ["link", "real"]
    assert (tmp_path / "real" / "weights").read_text() == "old"


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{tmp_path}/absent is not a folder"):
        fill(tmp_path / "absent" / "bundle")


def test_too_little_disk_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"GB free, the bundle needs 1000000\.0"):
        fill(tmp_path / "bundle", needed_bytes=10**15)
    assert left(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_is_told_in_a_line_and_leaves_the_old_bundle(tmp_path: Path, number: int) -> None:
    fill(tmp_path / "bundle", "old")
    with (
        pytest.raises(ResourceError, match=f"bundle cannot be written .{os.strerror(number)}"),
        staged(tmp_path / "bundle", 0, force=True) as folder,
    ):
        raise OSError(number, os.strerror(number), str(folder / "weights"))
    assert left(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "weights").read_text() == "old"


@pytest.mark.parametrize("name", ["bundle", "b[1]*?", "v1.0 (final)"])
def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.partial-{os.getpid()}").mkdir()
    (tmp_path / f".{name}.partial-4194305").mkdir()
    (tmp_path / f".{name}.partial-4194305" / "weights").write_text("half")
    (tmp_path / ".other.partial-1").mkdir()
    fill(tmp_path / name)
    assert left(tmp_path) == sorted([".other.partial-1", name])


HOLD = """
import sys
from pathlib import Path
from reflectrt.export.staging import staged
with staged(Path(sys.argv[1]), 0, force=False) as folder:
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of writing `bundle`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_export_to_the_same_place_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ExportError, match="another export is writing"):
        fill(tmp_path / "bundle")
    fill(tmp_path / "elsewhere")
    assert [name for name in left(tmp_path) if "partial" in name] == [f".bundle.partial-{holder.pid}"]


def test_a_killed_export_holds_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    fill(tmp_path / "bundle")
    assert left(tmp_path) == ["bundle"]


def test_hash_and_size_are_the_file_s(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    entry = staging.file_entry(tmp_path / "x")
    assert (entry.size, entry.sha256[:16]) == (3, "ba7816bf8f01cfea")


# Killed at every stage of a real export

STAGES = ["vision", "embed", "decoder", "head", "weights", "hash", "verify", "before rename", "after rename"]

DIE = """
import os, signal, sys
from pathlib import Path
from exports import Exports, Silence
from reflectrt.export import bundle, staging
from reflectrt.export.checkpoint import Checkpoint
from reflectrt.runtime.manifest import Verification

exports, root, stages = Exports(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:]
bundle.trace = lambda make, config, name: exports.traced(name)  # tracing is slow and no part of what is tested

def export(target, deadly):
    class Deadly(Silence):
        def stage(self, name):
            deadly(name)
        def weights(self, done, total):
            deadly("weights")
    publish = staging._publish
    def deadly_publish(folder, target):
        deadly("before rename")
        publish(folder, target)
        deadly("after rename")
    staging._publish = deadly_publish
    try:
        check = lambda folder: Verification(True, {})
        bundle.export_bundle(Checkpoint.open(exports.checkpoint()), target, bundle.ExportPlan(), Deadly(), check)
    finally:
        staging._publish = publish

export(root / "first", lambda stage: None)
for stage in stages:
    child = os.fork()
    if child == 0:
        export(root / stage, lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == stage else None)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), stage
    print(stage, flush=True)
"""


def test_an_export_killed_at_any_stage_leaves_a_whole_bundle_or_none(exports: Exports, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIE, str(exports.folder), str(tmp_path), *STAGES]
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == STAGES, done.stderr
    for stage in STAGES:
        target = tmp_path / stage
        if stage == "after rename":
            open_bundle(target)
        else:
            assert not target.exists(), stage
            assert any(name.startswith(f".{stage}.partial-") for name in left(tmp_path))


def test_a_folder_with_a_manifest_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "app"
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "a web app"}')
    (target / "clip.mp4").touch()
    with pytest.raises(ExportError, match="not a bundle"), staged(target, 0, force=True):
        pass
    assert (target / "clip.mp4").exists()


def test_an_old_bundle_that_was_set_aside_comes_back_at_the_next_export(tmp_path: Path) -> None:
    target, aside = tmp_path / "bundle", tmp_path / ".bundle.partial-old-1"
    aside.mkdir()
    (aside / "manifest.json").write_text(MANIFEST)
    with pytest.raises(ExportError, match="pass --force"), staged(target, 0, force=False):
        pass
    assert (target / "manifest.json").read_text() == MANIFEST
