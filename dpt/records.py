"""Dataclasses to and from plain JSON values, strictly: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import json
import types
from dataclasses import asdict, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from dpt.errors import UserError
from dpt.untrusted import parse_json

T = TypeVar("T")


def to_plain(record: Any) -> dict[str, Any]:
    """As JSON would give it back: tuples are lists, paths are strings."""
    plain: dict[str, Any] = parse_json(json.dumps(asdict(record), default=str), half_characters=True)
    return plain


def from_plain(kind: type[T], content: Any, where: str) -> T:
    built: T = _convert(kind, content, where)
    return built


def read_record(kind: type[T], file: Path) -> T:
    try:
        content = parse_json(file.read_text())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    return from_plain(kind, content, str(file))


def _convert(kind: Any, content: Any, where: str) -> Any:
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _build(kind, content, where)
    if origin in (Union, types.UnionType):
        if content is None and type(None) in get_args(kind):
            return None
        return _convert(next(arm for arm in get_args(kind) if arm is not type(None)), content, where)
    if origin is tuple:
        if not isinstance(content, list):
            raise UserError(f"{where}: expected a list, got {content!r}")
        arms = get_args(kind)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_convert(arms[0], item, f"{where}[{i}]") for i, item in enumerate(content))
        if len(arms) != len(content):
            raise UserError(f"{where}: expected {len(arms)} values, got {len(content)}")
        pairs = zip(arms, content, strict=True)
        return tuple(_convert(arm, item, f"{where}[{i}]") for i, (arm, item) in enumerate(pairs))
    if origin is dict:
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected an object, got {content!r}")
        return {key: _convert(get_args(kind)[1], value, f"{where}: {key}") for key, value in content.items()}
    if kind is float and is_number(content):
        return float(content)
    if kind is Path and isinstance(content, str):
        return Path(content)
    if kind is float or not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise UserError(f"{where}: expected {kind.__name__}, got {content!r}")
    return content


def is_number(content: Any) -> bool:
    """Neither infinite nor none at all, which JSON can spell in several ways."""
    if isinstance(content, bool) or not isinstance(content, int | float):
        return False
    return abs(content) < 1e300 if isinstance(content, int) else isfinite(content)


def _build(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected an object with the keys of {kind.__name__}, got {content!r}")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()})
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error
