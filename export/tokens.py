"""Which ids the special tokens of a checkpoint have, from tokenizer.json and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..runtime.errors import ExportError
from .config import Json, read_json, read_optional_json, text_section
from .facts import TokenFacts

REFLECTION_KEYS = {"vtk_start_id": "<BOR>", "vtk_id": "<VR>", "vtk_end_id": "<EOR>"}
STEPS_KEYS = {"vtk_image_steps": 1, "vtk_video_steps": 4}
"""Steps that a checkpoint is meant to take, and those of the authors' evaluation, whose checkpoints do not say."""


def token_ids(folder: Path, rows: int) -> dict[str, int]:
    """Ids of the added (special) tokens by spelling; ExportError where any token has no embedding row."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"{path} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    data = read_json(path)
    try:
        added = {str(token["content"]): int(token["id"]) for token in data.get("added_tokens", [])}
        ids = [*map(int, data["model"]["vocab"].values()), *added.values()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ExportError(f"{path} is not a byte-level BPE tokenizer; download it again") from None
    if not ids or min(ids) < 0 or max(ids) >= rows:
        raise ExportError(
            f"{path} has token id {max(ids, default=None)}, but the embedding has {rows} rows; "
            "use the tokenizer that the checkpoint was trained with"
        )
    return added


def token_facts(config: Json, ids: Mapping[str, int], folder: Path) -> TokenFacts:
    """Ids of the chat's special tokens; ExportError where config.json and tokenizer.json contradict."""

    def token(spelling: str, key: str = "") -> int:
        if spelling not in ids:
            raise ExportError(f"{folder}/tokenizer.json lacks {spelling}; use the checkpoint's own tokenizer")
        said = config.get(key, ids[spelling])
        if said != ids[spelling]:
            raise ExportError(
                f"{folder}/config.json has {key} {repr(said)[:60]}; "
                f"tokenizer.json has {spelling} at {ids[spelling]}: "
                "use the config and the tokenizer of one checkpoint"
            )
        return ids[spelling]

    im_end = token("<|im_end|>")
    return TokenFacts(
        im_start=token("<|im_start|>"),
        im_end=im_end,
        vision_start=token("<|vision_start|>", "vision_start_token_id"),
        vision_end=token("<|vision_end|>", "vision_end_token_id"),
        image_pad=token("<|image_pad|>", "image_token_id"),
        video_pad=token("<|video_pad|>", "video_token_id"),
        stop=(im_end, *(i for i in _end_ids(config, folder) if i != im_end)),
    )


def _end_ids(config: Json, folder: Path) -> list[int]:
    """End tokens of generation_config.json, else of config.json."""
    path = folder / "generation_config.json"
    found = read_optional_json(path).get("eos_token_id")
    if found is None:
        path = folder / "config.json"
        found = text_section(config, str(path)).data.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ExportError(f"{path}: eos_token_id is {str(found)[:60]}, not token ids; download it again")
    return list(dict.fromkeys(ids))


def reflection_ids(config: Json, ids: Mapping[str, int], rows: int, folder: Path) -> tuple[int, int, int] | None:
    """Ids of `<BOR>`, `<VR>`, `<EOR>` as config.json says, else the tokenizer; None where neither does."""
    nested = config.get("text_config")
    config = {**(nested if isinstance(nested, dict) else {}), **config}
    in_config = any(config.get(key) is not None for key in REFLECTION_KEYS)
    values = [config.get(k) if in_config else ids.get(spelling) for k, spelling in REFLECTION_KEYS.items()]
    known = [i for i in values if type(i) is int and 0 <= i < rows]
    if not in_config and values == [None] * 3:
        return None
    if len(set(known)) != 3:
        where = "config.json" if in_config else "tokenizer.json"
        raise ExportError(
            f"{folder}/{where} has {values} for <BOR>, <VR>, <EOR>, not three different ids below {rows}; "
            "use the config and the tokenizer of one VisReflect checkpoint"
        )
    return known[0], known[1], known[2]


def reflection_steps(config: Json, folder: Path) -> tuple[int, int]:
    """Reflection steps for images and for video, as config.json says, else as the authors evaluate."""
    values = [config.get(key, default) for key, default in STEPS_KEYS.items()]
    if not all(type(value) is int and value >= 0 for value in values):
        raise ExportError(f"{folder}/config.json has {values} for {', '.join(STEPS_KEYS)}, not whole numbers of steps")
    return values[0], values[1]
