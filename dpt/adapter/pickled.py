"""A look at the pickle of a checkpoint before torch reads it, without building anything.

torch refuses what is not allowed, but what it says of it quotes names and objects at any length, and searches that text
in time that grows with the square of it: a file of a megabyte could keep it busy for hours.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LONGEST_NAME = 1000
IN_A_LEGACY_FILE = 5
"""Pickles one after another: a number, the protocol, the machine, the tensors, the names of their storages."""
CONTAINERS = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "APPEND", "APPENDS", "DICT", "SETITEM", "SETITEMS",
              "EMPTY_LIST", "EMPTY_DICT")  # fmt: skip


def looks_harmless(file: Path) -> bool:
    """False for what no checkpoint has: endless names, or one container in several places, which unfolds endlessly."""
    try:
        with file.open("rb") as stream:
            return all(_harmless(one) for one in _pickles(stream))
    except FileNotFoundError:
        return True
    except Exception:  # no pickle, or a broken one
        return False


def _pickles(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        for _ in range(IN_A_LEGACY_FILE):
            yield stream
        return
    with zipfile.ZipFile(stream) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as member:
                    yield member


def _harmless(stream: IO[bytes]) -> bool:
    containers: set[int] = set()
    put, before = 0, ""
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if isinstance(argument, str | bytes) and len(argument) > LONGEST_NAME:
            return False
        if name.endswith("PUT") or name == "MEMOIZE":
            at = argument if isinstance(argument, int) else put
            containers.discard(at)
            if before in CONTAINERS:
                containers.add(at)
            put += 1
        elif (name.endswith("GET") and argument in containers) or name == "DUP":
            return False
        before = name
    return True
