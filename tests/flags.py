"""Options with some flags given, whichever of the nested groups they are in."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


def with_flags(options: T, **flags: Any) -> T:
    """The options with these values; a name that no group has is an error."""
    changed, left = _changed(options, flags)
    assert not left, f"{type(options).__name__} has no {sorted(left)}"
    return changed


def _changed(options: Any, flags: dict[str, Any]) -> tuple[Any, set[str]]:
    values: dict[str, Any] = {}
    left = set(flags)
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            values[field.name], without = _changed(value, flags)
            left &= without
        elif field.name in flags:
            values[field.name] = flags[field.name]
            left.discard(field.name)
    return replace(options, **values), left
