"""Open a VisReflect or Qwen2.5-VL checkpoint: check all that needs no weights, and read tensors.

Whatever is wrong is an `ExportError` of one line. Only JSON and safetensors are read: no pickles, no code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from ..runtime.errors import ExportError
from . import config as configs
from . import tensors as tensor_files
from .facts import ImageBudget, ReflectionFacts, TextFacts, TokenFacts, VisionFacts
from .tensors import EMBEDDING, HEAD, TensorRef, listing
from .tokens import reflection_ids, reflection_steps, token_facts, token_ids

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]

Progress = Callable[[int], None]
"""Called with the number of bytes just read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there and fit each other; weights stay on disk until `read`."""

    path: Path
    source: str
    """What was asked for: the folder or hub id."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Element type of every tensor."""
    text: TextFacts
    vision: VisionFacts
    reflection: ReflectionFacts | None
    """None for a plain Qwen2.5-VL, which has no reflection tokens."""
    tokens: TokenFacts
    image_budget: ImageBudget | None
    """None where the checkpoint does not say."""
    tensors: Mapping[str, TensorRef]
    """By canonical name: that of transformers' state dict, whatever the files call them."""

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Open a folder or hub id (`shenxq/VisReflect-7B-Video`); ExportError says what is wrong with it."""
        path = _folder(source)
        config_path = path / "config.json"
        config, pixels = configs.read_json(config_path), configs.pixel_section(path)
        configs.check_model(config, config_path)
        text = configs.text_facts(config, str(config_path))
        vision = configs.vision_facts(config, pixels, text, str(config_path))
        ids = token_ids(path, text.vocab)
        found = tensor_files.find_tensors(path)
        reflection = _reflection(reflection_ids(config, ids, text.vocab, path), reflection_steps(config, path), found)
        duplicate_head = found.pop(HEAD) if text.tied and HEAD in found else None
        shapes = tensor_files.expected_shapes(text, vision) | _head_shapes(reflection, text.hidden)
        tensor_files.check_tensors(found, shapes, path)
        if duplicate_head is not None:
            _check_tie(duplicate_head, found[EMBEDDING], path)
        return cls(
            path=path,
            source=str(source),
            dtype=found[EMBEDDING].dtype,  # type: ignore[arg-type]  # one of the three, by find_tensors
            text=text,
            vision=vision,
            reflection=reflection,
            tokens=token_facts(config, ids, path),
            image_budget=configs.image_budget(pixels),
            tensors=MappingProxyType({name: found[name] for name in shapes}),
        )

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(ref.nbytes for ref in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(ref.shape) for ref in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor by canonical name; ExportError where the file has changed or cannot be read."""
        return _read(self.tensors[name])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ExportError where tokenizer.json cannot be loaded."""
        path = self.path / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's Rust panics are no Exceptions
            raise ExportError(f"{path} cannot be loaded ({_short(error)}); download it again") from None

    def fingerprint(self, progress: Progress = lambda _: None) -> str:
        """SHA-256 over names, sizes and contents of config, tokenizer and weight files."""
        small = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
        files = {self.path / name for name in small if (self.path / name).is_file()}
        digest = hashlib.sha256()
        for file in sorted(files | {ref.file for ref in self.tensors.values()}):
            digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(2**24):
                    digest.update(chunk)
                    progress(len(chunk))
        return digest.hexdigest()


def _folder(source: str | Path) -> Path:
    """The local folder behind a path or hub id, downloaded if need be."""
    path = Path(source).expanduser()
    if path.exists() and not path.is_dir():
        raise ExportError(f"{path} is a file; give the folder that holds config.json and the weights")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ExportError(f"{path} has no config.json; give the folder of a Hugging Face checkpoint")
        return path
    if not HUB_ID.fullmatch(str(source)):
        raise ExportError(f"{source}: no such folder; give a checkpoint's folder or a hub id (owner/name)")
    return _download(str(source))


def _download(repo_id: str) -> Path:
    """Fetch a hub repository's JSON and safetensors files into the hub's cache; return their folder."""
    import huggingface_hub  # only here: opening a local folder needs no network library

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=HUB_FILES))
    except Exception as error:  # network, hub and disk errors have no common base
        raise ExportError(
            f"{repo_id} is no local folder and could not be fetched from the hub ({_short(error)}); "
            "check the name, the network and, for private checkpoints, `hf auth login`"
        ) from None


def _reflection(
    ids: tuple[int, int, int] | None, steps: tuple[int, int], found: Mapping[str, TensorRef]
) -> ReflectionFacts | None:
    """Reflection facts from the token ids, the steps, and the names and shapes of `reflection_head.*`."""
    if ids is None:
        return None
    if "reflection_head.weight" in found:
        return ReflectionFacts(*ids, *steps, "linear", head_bias="reflection_head.bias" in found)
    first = found.get("reflection_head.0.weight")
    if first is None:
        return ReflectionFacts(*ids, *steps, "identity")
    width, bias = first.shape[0] if first.shape else 0, "reflection_head.0.bias" in found
    return ReflectionFacts(*ids, *steps, "mlp", width, bias)


def _head_shapes(reflection: ReflectionFacts | None, hidden: int) -> dict[str, tuple[int, ...]]:
    """The tensors that a reflection head of this kind has, [out, in]."""
    if reflection is None or reflection.head == "identity":
        return {}
    width, bias = reflection.head_width, reflection.head_bias
    if reflection.head == "linear":
        return tensor_files.linear_shapes("reflection_head.", hidden, hidden, bias=bias)
    first = tensor_files.linear_shapes("reflection_head.0.", hidden, width, bias=bias)
    return first | tensor_files.linear_shapes("reflection_head.2.", width, hidden, bias=bias)


def _check_tie(head: TensorRef, embedding: TensorRef, folder: Path) -> None:
    """A tied checkpoint may repeat its table as the head; on another head, transformers' versions differ."""
    if head.shape != embedding.shape or not torch.equal(_read(head), _read(embedding)):
        raise ExportError(
            f"{folder}/config.json ties lm_head to the embedding, but another lm_head.weight is there; "
            "set tie_word_embeddings to false if it was trained on its own, else remove it"
        )


def _read(ref: TensorRef) -> torch.Tensor:
    try:
        with safe_open(ref.file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(ref.key)
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"{ref.file}: {listing([ref.key])} cannot be read ({_short(error)}); download it again"
        ) from None
    return tensor


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
