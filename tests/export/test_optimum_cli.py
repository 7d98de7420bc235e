import subprocess
import sys
from pathlib import Path

from exports import Exports
from reflectrt.runtime.bundle import open_bundle


def optimum(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_optimum_exports_a_bundle_like_ours(exports: Exports, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    done = optimum("visreflect", exports.checkpoint(), target, "--max-context", 4096)
    assert done.returncode == 0, done.stderr
    assert "agrees with PyTorch" in done.stderr
    assert "tokens_equal 1," in done.stderr
    theirs, ours = open_bundle(target).manifest, open_bundle(exports.bundle()).manifest
    assert theirs.model.max_context == 4096
    assert theirs.verification is not None
    assert theirs.verification.passed
    assert (theirs.files, theirs.graphs, theirs.source) == (ours.files, ours.graphs, ours.source)


def test_optimum_ends_as_our_command_line_does(tmp_path: Path) -> None:
    done = optimum("visreflect", tmp_path, tmp_path / "bundle")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path} has no config.json")
    assert "Traceback" not in done.stderr


def test_optimum_s_help_names_the_command() -> None:
    done = optimum("--help")
    assert done.returncode == 0
    assert "visreflect" in done.stdout
