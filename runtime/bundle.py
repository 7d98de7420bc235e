"""Open a bundle: read the manifest, check every file, and say in one line what is wrong and how to mend it.

A loader verifies nothing: a flipped weight byte loads silently in ONNX Runtime. So every file is hashed before an
engine sees it, once: a stamp outside the bundle remembers size, time and inode of files already found whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import manifest as manifests
from .contract import FLOAT
from .errors import BundleError
from .manifest import FileEntry, GraphEntry, Manifest
from .plans import check_plan
from .strict import short

Progress = Callable[[int, int], None]
"""Called with bytes hashed so far and bytes in all."""

CHUNK_BYTES = 4 * 2**20
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and unaltered."""

    path: Path
    manifest: Manifest
    sha256: str
    """Of the manifest, which names the hash of every other file: it identifies the whole bundle (`identity`)."""

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name


def open_bundle(path: str | Path, progress: Progress | None = None) -> Bundle:
    """Read and check the bundle in a folder.

    Raises BundleError (not a bundle, incomplete, altered, malformed) or CompatibilityError (newer format).
    """
    folder = Path(path)
    text = _read_manifest(folder)
    manifest = manifests.parse(text)
    _check_names(manifest)
    _check_files(folder, manifest.files, progress)
    _check_graphs(manifest)
    return Bundle(folder, manifest, manifests.identity(text))


def _read_manifest(folder: Path) -> str:
    file = folder / manifests.FILE_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; make a bundle with `reflectrt export CHECKPOINT {folder}`")
    if not file.is_file():
        raise BundleError(
            f"{folder} has no {manifests.FILE_NAME}: not a bundle, or a copy cut short; copy or export it again"
        )
    if file.stat().st_size > manifests.MAX_BYTES:
        raise BundleError(f"{file} is larger than {manifests.MAX_BYTES >> 20} MB; export the bundle again")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{file} is not UTF-8 text; export the bundle again") from None


def _check_names(manifest: Manifest) -> None:
    """No path leaves the folder, and every graph and the tokenizer are listed."""
    named = [file for graph in manifest.graphs.values() for file in graph.files()]
    named += [plan.file for plan in manifest.plans]
    for name in (*manifest.files, *named):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or not parts.parts or not name.isprintable():
            raise BundleError(f"manifest names the file {name!r} outside the bundle; do not use this bundle")
    for name in (TOKENIZER, *named):
        if name not in manifest.files:
            raise BundleError(f"manifest lists no hash for {name}; export the bundle again")


def _check_files(folder: Path, entries: dict[str, FileEntry], progress: Progress | None) -> None:
    stamp = _Stamp.load(folder)
    total, done = sum(entry.size for entry in entries.values()), 0
    for name, entry in entries.items():
        found = _stat_regular(folder, name, entry)
        if not stamp.knows(name, entry, found):
            actual = _sha256(folder / name)
            if actual != entry.sha256:
                raise BundleError(
                    f"{folder / name} is altered: sha256 {actual[:12]}..., expected {entry.sha256[:12]}...; "
                    "copy or export the bundle again"
                )
            stamp.add(name, entry, found)
        done += entry.size
        if progress:
            progress(done, total)
    stamp.save()


def _stat_regular(folder: Path, name: str, entry: FileEntry) -> os.stat_result:
    try:
        found = (folder / name).lstat()
        parent = (folder / name).parent.resolve()
    except FileNotFoundError:
        raise BundleError(f"{folder / name} is missing; copy or export the bundle again") from None
    except OSError as error:  # a name too long, or below a file
        raise BundleError(f"{folder / name[:80]} cannot be read ({error.strerror}); export the bundle again") from None
    if not parent.is_relative_to(folder.resolve()):
        raise BundleError(f"manifest names the file {name!r} outside the bundle; do not use this bundle")
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{folder / name} is not a regular file; copy or export the bundle again")
    if found.st_size != entry.size:
        raise BundleError(
            f"{folder / name} has {found.st_size} bytes, expected {entry.size}; copy or export the bundle again"
        )
    return found


def _check_graphs(manifest: Manifest) -> None:
    """The manifest's graphs are those that the contract asks of this model, port by port."""
    wanted = manifest.expected_signatures()
    if set(manifest.graphs) != set(wanted):
        raise BundleError(
            f"bundle has graphs {sorted(manifest.graphs)}, expected {sorted(wanted)}; export the bundle again"
        )
    for name, signature in wanted.items():
        if manifest.graphs[name].signature() != signature:
            raise BundleError(f"graph {name} does not have the contract's inputs and outputs; export the bundle again")
        _check_weights(name, manifest)
    for plan in manifest.plans:
        check_plan(plan, wanted.get(plan.graph))


def _check_weights(name: str, manifest: Manifest) -> None:
    """A graph's weights lie inside their files, under names of their own."""
    entry = manifest.graphs[name]
    ports = [port.name for port in entry.file_signature().inputs]
    if len(set(ports)) < len(ports):
        raise BundleError(f"graph {name} has two inputs of one name; export the bundle again")
    for weight in entry.weights:
        inside = 0 <= weight.offset <= manifest.files[weight.file].size - weight.nbytes
        if not inside or min(weight.shape, default=0) < 1:
            raise BundleError(f"weight {short(weight.name)} is not inside {weight.file}; export the bundle again")
    _check_blocks(name, entry)
    _check_steps(name, manifest)
    _check_long(name, manifest)


def _check_steps(name: str, manifest: Manifest) -> None:
    """What kernels of our own read has the sizes that they count on; matrices are held against them on loading."""
    entry, model = manifest.graphs[name], manifest.model
    form = entry.step_form
    if form is None:
        return
    shapes = {weight.name: weight.shape for weight in entry.weights}
    keys = model.kv_heads * model.head_dim
    cache = () if model.cache_dtype == FLOAT else ((1, model.kv_heads, 1, model.head_dim),) * 2
    sizes = ((model.hidden,), (form.heads * model.head_dim + 2 * keys,), (model.hidden,), *cache)
    whole = (
        len(form.layers) == model.layers
        and form.heads > 0
        and form.heads % model.kv_heads == 0
        and min(form.mrope_section) >= 0
        and 2 * sum(form.mrope_section) == model.head_dim
        and shapes.get(form.norm) == (model.hidden,)
        and all(set(layer.names()) <= shapes.keys() for layer in form.layers)
        and all(
            tuple(shapes[part] for part in (layer.norm, layer.bias, layer.mlp_norm, *layer.cache_scales)) == sizes
            for layer in form.layers
        )
    )
    if not whole:
        raise BundleError(f"the steps of graph {name} do not fit the model's sizes; export the bundle again")


def _check_long(name: str, manifest: Manifest) -> None:
    """Long runs are over the weights of steps, and divide by numbers that can be divided by."""
    entry = manifest.graphs[name]
    form = entry.long_form
    if form is None:
        return
    if form.tokens < 1:
        raise BundleError(f"graph {name} has a form for runs of {form.tokens} tokens; export it again")
    kinds = {weight.name: (weight.dtype, weight.shape) for weight in entry.weights}
    layers = entry.step_form.layers if entry.step_form else ()
    attention = {tuple(kinds[name] for name in layer.attention_names()) for layer in layers}
    positive = all(step > 0 for pair in form.mlp_steps for step in pair)
    if len(attention) != 1 or len(form.mlp_steps) != len(layers) or not positive:
        raise BundleError(f"the long runs of graph {name} do not fit its steps; export the bundle again")


def _check_blocks(name: str, entry: GraphEntry) -> None:
    """Every run of a block's file has all of its weights, once."""
    form, known = entry.block_form, {weight.name for weight in entry.weights}
    if form is None:
        return
    runs = (form.inputs, *form.blocks)
    if len(set(form.inputs)) < len(form.inputs) or len({len(names) for names in runs}) > 1:
        raise BundleError(f"graph {name} does not say what its blocks read; export the bundle again")
    if missing := sorted({weight for names in form.blocks for weight in names} - known):
        raise BundleError(f"graph {name} lacks the weight {short(missing[0])} of a block; export the bundle again")
    if min(form.heads, form.head_dim) < 1 or len(known) < len(entry.weights):
        raise BundleError(f"graph {name} has no heads, or two weights of one name; export the bundle again")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull)


class _Stamp:
    """Which files of a bundle were found whole: name -> (sha256, size, times, inode). Lost stamps cost a re-hash."""

    def __init__(self, file: Path, known: dict[str, list[object]]) -> None:
        self._file, self._known, self._changed = file, known, False

    @classmethod
    def load(cls, folder: Path) -> _Stamp:
        key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
        file = _cache_folder() / "reflectrt" / f"{key}.json"
        try:
            return cls(file, dict(json.loads(file.read_text())))
        except (OSError, ValueError, TypeError):  # no stamp yet, or not one of ours: hash everything
            return cls(file, {})

    @staticmethod
    def _mark(entry: FileEntry, found: os.stat_result) -> list[object]:
        return [entry.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]

    def knows(self, name: str, entry: FileEntry, found: os.stat_result) -> bool:
        return self._known.get(name) == self._mark(entry, found)

    def add(self, name: str, entry: FileEntry, found: os.stat_result) -> None:
        self._known[name], self._changed = self._mark(entry, found), True

    def save(self) -> None:
        if not self._changed:
            return
        with suppress(OSError):  # a read-only home only means hashing again next time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(self._known))
            partial.replace(self._file)
