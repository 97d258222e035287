"""Flags from dataclasses, warnings on the terminal, library versions."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, get_type_hints

import tyro

import dpt


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings meant for the user come as one line each, without a file name or a line of code."""
    with warnings.catch_warnings():
        ordinary = warnings.showwarning

        def show(message, category, *rest, **more):  # type: ignore[no-untyped-def]
            if issubclass(category, UserWarning):
                warn(str(message))
            else:
                ordinary(message, category, *rest, **more)

        warnings.showwarning = show
        yield


T = TypeVar("T")


def parse(entry: Callable[[T], object], words: Sequence[str], prog: str) -> T:
    """The options that `entry` takes as its only argument, read from the command line's words."""
    (name,) = [name for name in get_type_hints(entry) if name != "return"]
    return parse_options(get_type_hints(entry)[name], words, prog)


def parse_options(options: type[T], words: Sequence[str], prog: str) -> T:
    parsed: Any = tyro.cli(options, prog=prog, args=list(words), use_underscores=True)
    return parsed


LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy", "pillow")


def versions() -> dict[str, str]:
    found = {"dpt": dpt.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
