"""Write a bundle so that it is whole or not there: a temporary sibling folder, fsynced, hashed, then renamed.

Killed at any moment, an export leaves the old bundle or none under the bundle's name; what it left beside it is removed
by the next export to the same place.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..runtime import manifest as manifests
from ..runtime.errors import ExportError, ResourceError
from ..runtime.manifest import FileEntry

CHUNK_BYTES = 4 * 2**20


@contextmanager
def staged(target: Path, needed_bytes: int, force: bool) -> Iterator[Path]:
    """A folder to fill; published under `target` when the block ends well, removed when it does not.

    Raises ExportError where `target` exists (without `force`) or another export holds it, ResourceError where the disk
    has less than `needed_bytes` free or fails.
    """
    target = target.absolute()
    check_target(target, force)
    with _disk_errors_named(target), _locked(target):
        _clear_leftovers(target)
        check_target(target, force)
        _check_space(target.parent, needed_bytes)
        folder = target.parent / f".{target.name}.partial-{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
            _publish(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_target(target: Path, force: bool) -> None:
    """Refuse to overwrite anything but a bundle that the user said to replace."""
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent} is not a folder; create it first")
    if target.is_symlink():
        raise ExportError(f"{target} is a link; give the folder it leads to, or choose another name")
    if not target.exists():
        return
    if not _is_bundle(target):
        raise ExportError(f"{target} exists and is not a bundle; choose another name")
    if not force:
        raise ExportError(f"{target} exists; pass --force to replace it, or choose another name")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder's manifest says that it is ours; much else has a manifest.json too."""
    try:
        found = json.loads((folder / manifests.FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == manifests.FORMAT


def file_entry(file: Path) -> FileEntry:
    """Size and hash of a file, which is flushed to disk on the way."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return FileEntry(file.stat().st_size, digest.hexdigest())


def _clear_leftovers(target: Path) -> None:
    """What killed exports left beside `target`; an old bundle set aside comes back where none took its place."""
    name = glob.escape(target.name)
    for aside in target.parent.glob(f".{name}.partial-old-*"):
        if not target.exists():
            aside.rename(target)
    for stale in target.parent.glob(f".{name}.partial-*"):
        shutil.rmtree(stale)


@contextmanager
def _disk_errors_named(target: Path) -> Iterator[None]:
    """A full, read-only or broken disk as one line."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"{target} cannot be written ({error.strerror or error}); choose another disk") from error


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another export is writing {target}; wait for it, or choose another name") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free, the bundle needs {needed / 1e9:.1f}; free some or use another disk"
        )


def _publish(folder: Path, target: Path) -> None:
    _sync_folder(folder)
    if target.exists():  # rename cannot replace a folder that has files: set the old one aside first
        aside = target.parent / f".{target.name}.partial-old-{os.getpid()}"
        target.rename(aside)
        try:
            folder.rename(target)
        except BaseException:  # an interrupt between the two renames included: the old bundle comes back
            aside.rename(target)
            raise
        shutil.rmtree(aside)
    else:
        folder.rename(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
