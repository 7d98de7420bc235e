"""Where a checkpoint's tensors lie, under today's names, and which tensors there must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..runtime.errors import ExportError
from .config import read_json
from .facts import TextFacts, VisionFacts

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class TensorRef:
    """One tensor in one safetensors file."""

    file: Path
    key: str
    """Its name in the file, which may be that of 2025."""
    shape: tuple[int, ...]
    dtype: str
    """float32, bfloat16 or float16."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        count = 1
        for size in self.shape:
            count *= size
        return count * (4 if self.dtype == "float32" else 2)


def canonical_name(key: str) -> str:
    """Today's name in transformers' state dict for a name of 2025 (which transformers 5 still writes)."""
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.language_model.", "model.visual.")):
        return f"model.language_model.{key.removeprefix('model.')}"
    return key


def find_tensors(folder: Path) -> dict[str, TensorRef]:
    """All tensors of a checkpoint folder by canonical name, from the files' headers alone.

    Raises ExportError for pickled weights, shards that are missing, damaged or outside the folder, a tensor
    found twice or missing from its shard, and element types other than float32, bfloat16 and float16.
    """
    placed = _placement(folder)
    found: dict[str, TensorRef] = {}
    for file in placed:
        for ref in _read_header(file):
            name = canonical_name(ref.key)
            if name.endswith("rotary_emb.inv_freq"):
                continue  # a constant that older releases saved; computed here
            if name in found:
                files = f"{found[name].file.name} and {ref.file.name}"
                raise ExportError(
                    f"{folder} holds {listing([name])} twice ({files}); remove the shards that do not belong"
                )
            found[name] = ref
    _check_index(placed, found, folder)
    return found


def _placement(folder: Path) -> dict[Path, set[str]]:
    """The weight files to read, each with the canonical names that the index puts there."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():  # transformers' order: a whole file goes before an index
        return {single: set()}
    if not index.is_file():
        raise _no_weights(folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{index} has no weight_map; download it again")
    placed: dict[Path, set[str]] = {}
    for key, file in weight_map.items():
        placed.setdefault(_shard(folder, file), set()).add(canonical_name(key))
    missing = sorted(path.name for path in placed if not path.is_file())
    if missing:
        raise ExportError(f"{folder} lacks {listing(missing)}, named in {INDEX}; download the missing shards")
    return placed


def _shard(folder: Path, file: object) -> Path:
    """A shard's path; only plain file names, so that an index cannot reach outside the folder."""
    if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
        shown = repr(file)[:60]
        raise ExportError(f"{folder / INDEX} names {shown}, which is not a .safetensors file of its folder; refused")
    return folder / file


def _no_weights(folder: Path) -> ExportError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return ExportError(
            f"{folder} has only pickled weights ({listing(pickles)}), which can run code when loaded; "
            "load them with transformers where that is safe and write safetensors with save_pretrained()"
        )
    return ExportError(f"{folder} has neither {SINGLE} nor {INDEX}; download the checkpoint's weights")


def _read_header(file: Path) -> list[TensorRef]:
    """What one file holds; safetensors checks that header and file size agree."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
            return [_ref(file, key, part.get_shape(), part.get_dtype()) for key, part in slices.items()]
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ExportError(f"{file} is damaged or cut short ({reason}); download it again") from None


def _ref(file: Path, key: str, shape: Iterable[int], dtype: str) -> TensorRef:
    if dtype not in DTYPES:
        raise ExportError(
            f"{file}: {listing([key])} has element type {dtype}; save the checkpoint in float32, bfloat16 or float16"
        )
    return TensorRef(file, key, tuple(shape), DTYPES[dtype])


def _check_index(placed: Mapping[Path, set[str]], found: Mapping[str, TensorRef], folder: Path) -> None:
    strays = [n for file, names in placed.items() for n in names if n not in found or found[n].file != file]
    if strays:
        raise ExportError(f"{folder}: {listing(sorted(strays))} not in the shard that {INDEX} says; download it again")


def check_tensors(found: Mapping[str, TensorRef], expected: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Exactly the expected tensors, of the expected shapes and one element type; else ExportError."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise ExportError(
            f"{folder} lacks {len(missing)} of {len(expected)} tensors: {listing(missing)}; "
            "check config.json's sizes and tie_word_embeddings, or download the checkpoint again"
        )
    extra = [name for name in found if name not in expected]
    if extra:
        raise ExportError(
            f"{folder} holds {len(extra)} tensors that this model has no place for: {listing(extra)}; "
            "check config.json's sizes, or remove them if they are not part of the model"
        )
    wrong = [
        f"{name} {list(found[name].shape)} for {list(shape)}"
        for name, shape in expected.items()
        if found[name].shape != shape
    ]
    if wrong:
        raise ExportError(f"{folder} does not have config.json's shapes: {listing(wrong)}; use the config it came with")
    _check_one_dtype(found, folder)


def _check_one_dtype(found: Mapping[str, TensorRef], folder: Path) -> None:
    main = found[EMBEDDING].dtype
    others = [f"{name} {ref.dtype}" for name, ref in found.items() if ref.dtype != main]
    if others:
        raise ExportError(
            f"{folder} mixes element types (embeddings {main}, {listing(others)}); save it in one, "
            f"with model.to(torch.{main}).save_pretrained()"
        )


def expected_shapes(text: TextFacts, vision: VisionFacts) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by canonical name, [out, in] for linear layers, without reflection head."""
    shapes = _vision_shapes(vision) | {EMBEDDING: (text.vocab, text.hidden)}
    for index in range(text.layers):
        shapes |= _layer_shapes(text, f"model.language_model.layers.{index}.")
    shapes["model.language_model.norm.weight"] = (text.hidden,)
    return shapes if text.tied else shapes | {HEAD: (text.vocab, text.hidden)}


def _layer_shapes(text: TextFacts, prefix: str) -> dict[str, tuple[int, ...]]:
    query, key = text.heads * text.head_dim, text.kv_heads * text.head_dim
    shapes = _swiglu(f"{prefix}mlp.", text.hidden, text.mlp, bias=False)
    for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
        shapes |= linear_shapes(f"{prefix}self_attn.{name}.", text.hidden, rows, bias=True)
    shapes |= linear_shapes(f"{prefix}self_attn.o_proj.", query, text.hidden, bias=False)
    norms = ("input_layernorm", "post_attention_layernorm")
    return shapes | {f"{prefix}{norm}.weight": (text.hidden,) for norm in norms}


def _vision_shapes(vision: VisionFacts) -> dict[str, tuple[int, ...]]:
    prefix, d, inner = "model.visual.", vision.hidden, vision.hidden * vision.merge**2
    kernel = (vision.in_channels, vision.temporal_patch, vision.patch, vision.patch)
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}patch_embed.proj.weight": (d, *kernel)}
    for index in range(vision.depth):
        block = f"{prefix}blocks.{index}."
        shapes |= linear_shapes(f"{block}attn.qkv.", d, 3 * d, bias=True)
        shapes |= linear_shapes(f"{block}attn.proj.", d, d, bias=True)
        shapes |= _swiglu(f"{block}mlp.", d, vision.mlp, bias=True)
        shapes |= {f"{block}norm1.weight": (d,), f"{block}norm2.weight": (d,)}
    shapes[f"{prefix}merger.ln_q.weight"] = (d,)
    shapes |= linear_shapes(f"{prefix}merger.mlp.0.", inner, inner, bias=True)
    return shapes | linear_shapes(f"{prefix}merger.mlp.2.", inner, vision.out_hidden, bias=True)


def _swiglu(prefix: str, width: int, inner: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    gate = linear_shapes(f"{prefix}gate_proj.", width, inner, bias=bias)
    up = linear_shapes(f"{prefix}up_proj.", width, inner, bias=bias)
    return gate | up | linear_shapes(f"{prefix}down_proj.", inner, width, bias=bias)


def linear_shapes(prefix: str, inputs: int, outputs: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a linear layer."""
    weight: dict[str, tuple[int, ...]] = {f"{prefix}weight": (outputs, inputs)}
    return weight | {f"{prefix}bias": (outputs,)} if bias else weight


def listing(names: list[str]) -> str:
    """Up to ten names, on one line and within reason, and how many more there are."""
    shown = [name[:120] if name.isprintable() else ascii(name[:120]) for name in names[:10]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
