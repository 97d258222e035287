"""What went wrong because of what the user gave us: one clear sentence, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

LONGEST = 1500
"""Characters of a sentence. Whatever it quotes may have been written by anybody."""


class UserError(Exception):
    """A mistake in what was asked for. The message is one sentence that names the thing at fault."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(presentable(message))


def presentable(message: str) -> str:
    """On one line that any terminal can show, and that cannot steer one; cut in the middle if it is endless."""
    message = _cut(message)
    if message.isprintable():
        return message
    line = " ".join(message.split("\n"))
    return _cut("".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line))


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 300]} … {message[-297:]}"


def fail(message: str) -> NoReturn:
    raise UserError(message)


def run_command(command: Callable[[], object]) -> int:
    """Run a command-line entry point; user errors become one line on stderr and their exit code, 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        print(f"error: {presentable(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class DataError(UserError):
    """Something in a data file that cannot be used."""


class BrokenImageError(DataError):
    """A picture file that is missing, cut, or cannot be decoded."""

    path: str = ""
    reason: str = ""

    @classmethod
    def of(cls, path: Path, reason: str) -> BrokenImageError:
        broken = cls(f"the picture {path} cannot be used: {reason}")
        broken.path, broken.reason = str(path), reason
        return broken


OnDataError = Callable[[DataError], None]
"""What a reader does about a row it cannot use: stop there (training), or take note and read on (a check)."""


def raise_error(fault: DataError) -> None:
    raise fault
