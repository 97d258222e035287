"""Flags from a TOML file: `--config run.toml`. A flag on the command line wins over the file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpt.cli.common.console import DIFFUSERS_NAMES, PublishedFlags, flag_names, suggestion, warn
from dpt.errors import UserError, fail
from dpt.records import from_plain, to_plain
from dpt.untrusted import read_text

CONFIG_FLAG = "config"

RESOLVED = "run.toml"
"""The file beside a run with its resolved flags."""

T = TypeVar("T")


def take_config_flag(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words without `--config FILE`, and the file."""
    kept: list[str] = []
    file: Path | None = None
    following = iter(words)
    for word in following:
        name, equals, value = word.partition("=")
        if name != f"--{CONFIG_FLAG}":
            kept.append(word)
            continue
        value = value if equals else next(following, "")
        if not value or value.startswith("--"):
            fail("--config needs a TOML file with flags, as `--config run.toml`")
        file = Path(value)
    return kept, file


def options_of_file(file: Path, kind: type[T], published: PublishedFlags, default: T | None = None) -> T:
    """The options with the values of the file; those that it does not name are those of `default` or of the class."""
    plain = to_plain(kind() if default is None else default)
    known = flag_names(kind)
    for name, value in _flat(_parsed(file), file):
        flag = _flag(name, known, published, file)
        if flag is not None and not _set(plain, flag, value):
            fail(f"{file}: there is no flag --{flag}")
    return from_plain(kind, plain, str(file))


def _parsed(file: Path) -> dict[str, Any]:
    if not file.is_file():
        fail(f"--config: there is no file {file}")
    try:
        return tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file} is not TOML: {error}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{file} nests too deeply: flags are `name = value`, in tables or not") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _flat(content: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Any]]:
    """The flags of all tables; a table only groups them."""
    seen: set[str] = set()
    for name, value in content.items():
        for inner, leaf in _flat(value, file) if isinstance(value, dict) else [(name.replace("-", "_"), value)]:
            if inner in seen:
                fail(f"{file}: {inner} is given twice")
            seen.add(inner)
            yield inner, leaf


def _flag(name: str, known: set[str], published: PublishedFlags, file: Path) -> str | None:
    """The flag that a name of the file stands for; None if it is ignored."""
    if name in known:
        return name
    if name in published.refused:
        fail(f"{file}: {name} {published.refused[name]}")
    if name in published.ignored:
        warn(f"{file}: {name} {published.ignored[name]}")
        return None
    if DIFFUSERS_NAMES.get(name) in known:
        return DIFFUSERS_NAMES[name]
    return fail(f"{file}: there is no flag {name!r}{suggestion(name, known)}")


def _set(plain: dict[str, Any], name: str, value: Any) -> bool:
    """Set the entry of this name in a record or in one nested in it."""
    if name in plain and not isinstance(plain[name], dict):
        plain[name] = value
        return True
    return any(_set(inner, name, value) for inner in plain.values() if isinstance(inner, dict))


def to_toml(options: Any) -> str:
    """All flags that have a value, by group. Fields that are not shown, such as a token, are left out."""
    lines = ["# The resolved flags of this run: give this file to the same command as --config."]
    groups = {f.name: getattr(options, f.name) for f in fields(options) if is_dataclass(getattr(options, f.name))}
    grouped = flag_names_of(groups.values())
    lines += [line for line in _lines(options) if line.partition(" =")[0] not in grouped]
    for name, group in groups.items():
        if inner := list(_lines(group)):
            lines += ["", f"[{name}]", *inner]
    return "\n".join(lines) + "\n"


def flag_names_of(records: Iterable[Any]) -> set[str]:
    return {line.partition(" =")[0] for record in records for line in _lines(record)}


def _lines(record: Any) -> Iterator[str]:
    for f in fields(record):
        value = getattr(record, f.name)
        if is_dataclass(value):
            yield from _lines(value)
        elif f.repr and value is not None:
            yield f"{f.name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)
