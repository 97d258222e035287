"""Dataclasses to and from JSON values, strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dpt.errors import UserError, reason
from dpt.files import atomic_file
from dpt.untrusted import parse_json, read_json, read_json_object

T = TypeVar("T")


def to_plain(record: Any) -> dict[str, Any]:
    """As JSON would give it back: tuples are lists, paths are strings."""
    plain: dict[str, Any] = parse_json(json.dumps(asdict(record), default=str), surrogates=True)
    return plain


def to_flat(record: Any) -> dict[str, Any]:
    """As `to_plain`, with the fields of nested dataclasses beside the others: their names must differ."""
    flat: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        flat |= (
            to_flat(value)
            if is_dataclass(value)
            else {f.name: parse_json(json.dumps(value, default=str), surrogates=True)}
        )
    return flat


def from_plain(kind: type[T], content: Any, where: str) -> T:
    """`content` as a `kind`: a dataclass, int, float, str, bool, tuple, list, dict, Literal or union of these.

    A bool is not an int, NaN and infinity are not floats, and a whole number is a float.
    """
    built: T = _convert(kind, content, where)
    return built


def read_record(kind: type[T], file: Path) -> T:
    return from_plain(kind, read_json(file), str(file))


def changed_keys(stored: Mapping[str, Any], current: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """The keys whose values differ, or that only one of the two has."""
    return sorted(key for key in {*stored, *current} - {*ignored} if stored.get(key) != current.get(key))


def changes(stored: Mapping[str, Any], current: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """ "seed was 1 and is 2; ...", or nothing if no value differs."""
    keys = changed_keys(stored, current, ignored)
    return "; ".join(f"{key} was {stored.get(key)!r} and is {current.get(key)!r}" for key in keys)


def claim_record(file: Path, record: Mapping[str, Any], refusal: Callable[[list[str]], str], replace: bool) -> None:
    """Write the inputs of a result beside it. Where others are recorded, raise UserError(refusal(changed keys)).

    `replace`: whether the result does not exist yet, so that a record of other inputs does not matter.
    """
    try:
        if file.exists() and not replace and (changed := changed_keys(read_json_object(file), record)):
            raise UserError(refusal(changed))
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as work:
            work.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"the folder {file.parent} cannot be written: {reason(error)}") from None


def is_number(content: Any) -> bool:
    """Whether it is a finite number, which a bool is not."""
    if isinstance(content, bool) or not isinstance(content, int | float):
        return False
    return abs(content) < 1e300 if isinstance(content, int) else isfinite(content)


def _convert(kind: Any, content: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _build(kind, content, where)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, content, where)
    if origin is Literal:
        if not any(content == value and type(content) is type(value) for value in arguments):
            raise UserError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {content!r}")
        return content
    if origin is tuple and arguments[-1:] != (Ellipsis,):
        items = _list(content, where)
        if len(arguments) != len(items):
            raise UserError(f"{where}: expected {len(arguments)} values, got {len(items)}")
        pairs = zip(arguments, items, strict=True)
        return tuple(_convert(arm, item, f"{where}[{i}]") for i, (arm, item) in enumerate(pairs))
    if origin in (tuple, list, Sequence):
        converted = [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_list(content, where))]
        return tuple(converted) if origin is tuple else converted
    if origin in (dict, Mapping):
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected an object, got {content!r}")
        return {key: _convert(arguments[1], value, f"{where}: {key}") for key, value in content.items()}
    if kind is float and is_number(content):
        return float(content)
    if kind is Path and isinstance(content, str):
        return Path(content)
    if kind is float or not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise UserError(f"{where}: expected {kind.__name__}, got {content!r}")
    return content


def _one_of(kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    if content is None and type(None) in kinds:
        return None
    *first, last = [kind for kind in kinds if kind is not type(None)]
    for kind in first:
        try:
            return _convert(kind, content, where)
        except UserError:
            continue
    return _convert(last, content, where)


def _list(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a list, got {content!r}")
    return content


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected an object with the keys of {kind.__name__}, got {content!r}")
    hints = _hints(kind)
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()})
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error
