"""Files that anybody may have written, read without running or building what they hold: JSON, literals, pickles."""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(
    text: str | bytes, *, half_characters: bool = False, constant: Callable[[str], Any] | None = None
) -> Any:
    """`half_characters`: whether texts may hold what cannot be written as UTF-8. `constant`: what to make of NaN."""
    try:
        value = json.loads(text, parse_constant=constant)
        written = text if isinstance(text, str) else text.decode("latin-1")
        if not half_characters and _MAY_BE_HALF.search(written):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    return value


LONGEST_NAME = 1000

IN_A_LEGACY_FILE = 5
"""Pickles one after another: a number, the protocol, the machine, the tensors, the names of their storages."""

CONTAINERS = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "APPEND", "APPENDS", "DICT", "SETITEM", "SETITEMS",
              "EMPTY_LIST", "EMPTY_DICT")  # fmt: skip


def is_safe_pickle(file: Path) -> bool:
    """False for what no checkpoint has: endless names, or one container in several places, which unfolds endlessly."""
    try:
        with file.open("rb") as stream:
            return all(_is_safe_stream(one) for one in _pickles(stream))
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


def _is_safe_stream(stream: IO[bytes]) -> bool:
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


ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

HEXADECIMAL = {"x": 2, "u": 4, "U": 8}

PLAIN = {quote: re.compile(rf"[^{quote}\\\n\r]*") for quote in "'\""}

SPACE = re.compile(r"[ \t\r\n]*")


def string_list(text: str) -> list[str]:
    """The strings of the list; a ValueError says what is wrong and at which character."""
    at = _expect(text, _skip(text, 0), "[")
    strings: list[str] = []
    at = _skip(text, at)
    if text[at : at + 1] != "]":
        while True:
            string, at = _string(text, at)
            strings.append(string)
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
    at = _skip(text, _expect(text, at, "]"))
    if at < len(text):
        raise ValueError(f"there is more after the end of the list, at character {at}")
    return strings


def _skip(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    assert space is not None
    return space.end()


def _expect(text: str, at: int, wanted: str) -> int:
    if text[at : at + 1] != wanted:
        raise ValueError(f"expected {wanted!r} at character {at}, found {_character_at(text, at)}")
    return at + 1


def _character_at(text: str, at: int) -> str:
    return repr(text[at]) if at < len(text) else "the end"


def _string(text: str, at: int) -> tuple[str, int]:
    """The quoted string that begins at `at`, and where it ends."""
    quote = text[at : at + 1]
    if quote not in PLAIN:
        raise ValueError(f"expected a quoted string at character {at}, found {_character_at(text, at)}")
    parts: list[str] = []
    at += 1
    while True:
        plain = PLAIN[quote].match(text, at)
        assert plain is not None
        parts.append(plain.group())
        at = plain.end()
        if text[at : at + 1] == quote:
            return "".join(parts), at + 1
        if text[at : at + 1] != "\\":
            raise ValueError(f"the string is not closed at character {at}, before {_character_at(text, at)}")
        character, at = _escaped(text, at + 1)
        parts.append(character)


def _escaped(text: str, at: int) -> tuple[str, int]:
    kind = text[at : at + 1]
    if kind in ESCAPES:
        return ESCAPES[kind], at + 1
    if kind not in HEXADECIMAL:
        raise ValueError(f"unknown escape at character {at - 1}: a backslash before {_character_at(text, at)}")
    digits = text[at + 1 : at + 1 + HEXADECIMAL[kind]]
    if not re.fullmatch(rf"[0-9a-fA-F]{{{HEXADECIMAL[kind]}}}", digits):
        raise ValueError(f"expected {HEXADECIMAL[kind]} hexadecimal digits after character {at}")
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"character {at - 1} stands for U+{code:X}, which is no character")
    return chr(code), at + 1 + len(digits)
