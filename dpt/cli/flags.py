"""Options dataclasses to flags. Nothing else in the project parses arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

import tyro

T = TypeVar("T")


def parse(entry: Callable[[T], object], words: Sequence[str], prog: str) -> T:
    """The options that `entry` takes as its only argument, read from the command line's words."""
    (name,) = [name for name in get_type_hints(entry) if name != "return"]
    return parse_options(get_type_hints(entry)[name], words, prog)


def parse_options(options: type[T], words: Sequence[str], prog: str) -> T:
    parsed: Any = tyro.cli(options, prog=prog, args=list(words), use_underscores=True)
    return parsed
