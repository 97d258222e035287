"""User errors: one sentence and exit code 2 instead of a traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LONGEST = 1500
"""Characters of a message, which may quote hostile text."""

OUTSIDE_FAULTS = {
    errno.ENOSPC: "free some space, then run the command again",
    errno.EDQUOT: "free some of your quota, then run the command again",
    errno.EFBIG: "raise the limit on the size of files, then run the command again",
    errno.EROFS: "choose another output folder",
    errno.EPIPE: "the program that reads the output has ended",
    errno.EIO: "check the disk",
}
"""System errors that are not bugs, and what to do about each."""


def reason(error: OSError) -> str:
    """What the system says about a file that cannot be written."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "it, or a folder above it, is a file: choose another name"
    return error.strerror or str(error)


class UserError(Exception):
    """A mistake in the input. The message is one sentence that names the file or flag at fault."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(presentable(message))


def presentable(message: str) -> str:
    """The message on one line, of bounded length and without characters that could steer a terminal."""
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
    """Run a command-line entry point and return its exit code; a user error becomes one line on stderr and 2."""
    try:
        try:
            command()
        finally:
            sys.stdout.flush()  # a full disk must be reported here, not when Python ends
    except UserError as error:
        return _report(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _report("", 130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "dpt":
            raise
        return _report(not_installed(error.name), UserError.exit_code)
    except Exception as error:
        if (message := system_fault(error)) is None:
            raise
        return _report(message, UserError.exit_code)
    return 0


def not_installed(package: str) -> str:
    """The sentence for a Python that lacks a package which dpt requires."""
    return (
        f"{package} is not installed for {sys.executable}: activate the environment of dpt (. .venv/bin/activate), or "
        "make one with `make demo` in a checkout, or with pip install dpt-….whl"
    )


def system_fault(error: BaseException | None) -> str | None:
    """The sentence for a full disk, a lost reader and the like, whichever library wrapped the error; else None."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        advice = OUTSIDE_FAULTS.get(error.errno or 0, "")
        return presentable(f"{error.filename}: {reason(error)}{advice and f'; {advice}'}")
    while error is not None:
        wrapped = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors writes it
        number = error.errno if isinstance(error, OSError) else int(wrapped[1]) if wrapped else None
        if number in OUTSIDE_FAULTS:
            return presentable(f"the output cannot be written: {os.strerror(number)}; {OUTSIDE_FAULTS[number]}")
        error = error.__cause__ or error.__context__
    return None


def _report(message: str, exit_code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # the rest of the buffer would fail again when Python ends
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"error: {message}" if message else "interrupted", file=sys.stderr)
    return exit_code


class DataError(UserError):
    """An unusable data file, or an unusable row of one."""


class BrokenImageError(DataError):
    """An image file that is missing, cut, or cannot be decoded."""

    path: str = ""
    reason: str = ""

    @classmethod
    def of(cls, path: Path, reason: str) -> BrokenImageError:
        broken = cls(f"the image {path} cannot be used: {reason}")
        broken.path, broken.reason = str(path), reason
        return broken


OnDataError = Callable[[DataError], None]
"""What a reader does with a row it cannot use: stop (training), or count it and continue (a check)."""


def raise_error(fault: DataError) -> None:
    raise fault
