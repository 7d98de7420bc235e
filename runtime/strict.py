"""Strict JSON: text to frozen dataclasses, where a missing field or a wrong type is an error that names it.

Unknown fields are ignored (a newer writer may add facts). Used for what others may have written: manifests, recipes.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class StrictError(ValueError):
    """What is wrong with a text or a field, without what to do about it: the caller knows."""


def loads(text: str) -> Any:
    """JSON without duplicate keys, NaN or infinity. Raises StrictError."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise StrictError(f"not valid JSON ({error})") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def build(kind: type[T], data: object, where: str) -> T:
    """A dataclass from parsed JSON; `where` is its name in messages. Raises StrictError."""
    if not isinstance(data, dict):
        raise StrictError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # only called on dataclasses
        if field.name not in data:
            raise StrictError(f"{where}.{field.name} is missing")
        values[field.name] = _value(hints[field.name], data[field.name], f"{where}.{field.name}")
    return kind(**values)


def _value(hint: Any, data: Any, where: str) -> Any:
    """`data` checked against a type hint and rebuilt as it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return build(typing.cast(type, hint), data, where)
    if hint is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        return _either(args, data, where)
    if origin is Literal and data in args:
        return data
    if origin is tuple and isinstance(data, list):
        return _items(args, data, where)
    if origin is dict and isinstance(data, dict):
        return {key: _value(args[1], item, f"{where}.{_printable(key)}") for key, item in data.items()}
    if hint is float and type(data) in (int, float) and abs(data) < 2**63:  # JSON's 1e999 is read as infinity
        return float(data)
    if isinstance(hint, type) and type(data) is hint:
        return data
    wanted = getattr(hint, "__name__", hint)
    raise StrictError(f"{where} is {short(data)}, not {wanted}")


def _either(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in choices:
        return None
    simple = {int: int, str: str}
    if type(data) in choices and type(data) in simple:
        return data
    rest = [choice for choice in choices if choice is not type(None)]
    return _value(rest[0], data, where)


def _items(args: tuple[Any, ...], data: list[Any], where: str) -> tuple[Any, ...]:
    hints = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(data):
        raise StrictError(f"{where} has {len(data)} items, not {len(hints)}")
    return tuple(_value(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, data, strict=True)))


def _printable(key: str) -> str:
    return (key if key.isprintable() else ascii(key))[:80]


def short(data: object) -> str:
    """A value for a message, cut to 40 characters."""
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
