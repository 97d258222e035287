"""How commands talk on the terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
