"""Reads untrusted files: regular files of bounded size, JSON, pickles, literals."""

from __future__ import annotations

import json
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dpt.errors import UserError

MIB = 2**20

LARGEST_TEXT = 256 * MIB
"""Bytes of a JSON or text file, unless the caller says otherwise."""


MOST_IMAGES = 10**6
"""Upper limit per prompt and in total, against typing errors and broken files."""


def open_regular(file: Path, largest: int | None = None, within: Path | None = None) -> IO[bytes]:
    """Open a file to read, or raise UserError if it is a device, a pipe or a folder, or has more than `largest` bytes.

    `within`: the folder that a link may not lead out of. A missing file is a FileNotFoundError.
    """
    if within is not None and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(within)):
        raise UserError(f"{file} is a link to a file outside {within}, which is not followed")
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would block
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{file} is not a regular file but {_kind(facts.st_mode)}")
        if largest is not None and facts.st_size > largest:
            raise UserError(f"{file} has {facts.st_size / MIB:,.0f} MiB; the limit is {largest / MIB:,.0f} MiB")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(file: Path) -> None:
    """For files that a library opens by itself."""
    open_regular(file).close()


def read_bytes(file: Path, largest: int = LARGEST_TEXT, within: Path | None = None) -> bytes:
    with open_regular(file, largest, within) as stream:
        return stream.read(os.fstat(stream.fileno()).st_size)  # not more, even if the file grows meanwhile


def read_text(file: Path, largest: int = LARGEST_TEXT, within: Path | None = None) -> str:
    """As UTF-8, a byte order mark left out. A file in another encoding is a UserError."""
    try:
        return read_bytes(file, largest, within).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from None


def read_json(file: Path, largest: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file; any fault is a UserError that names the file."""
    try:
        return parse_json(read_text(file, largest))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None


def read_json_object(file: Path, largest: int = LARGEST_TEXT) -> dict[str, Any]:
    content = read_json(file, largest)
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes, *, surrogates: bool = False, constant: Callable[[str], Any] | None = None) -> Any:
    """The value, or a ValueError. `surrogates` allows strings that UTF-8 cannot hold; `constant` replaces NaN."""
    try:
        value = json.loads(text, parse_constant=constant)
        written = text if isinstance(text, str) else text.decode("latin-1")
        if not surrogates and _SURROGATE.search(written):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return value


LONGEST_NAME = 1000

PICKLES_IN_A_LEGACY_FILE = 5
"""One after another: magic number, protocol, system, tensors, names of their storages."""

CONTAINERS = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "APPEND", "APPENDS", "DICT", "SETITEM", "SETITEMS",
              "EMPTY_LIST", "EMPTY_DICT")  # fmt: skip


def is_safe_pickle(file: Path) -> bool:
    """Refuse what no checkpoint has: very long names, and containers used twice, which can expand without limit."""
    try:
        with open_regular(file) as stream:
            return all(_is_safe_stream(pickle) for pickle in _pickles(stream))
    except FileNotFoundError:
        return True
    except UserError:
        raise
    except Exception:  # not a pickle, or a broken one
        return False


def _pickles(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(stream):
        stream.seek(0)
        for _ in range(PICKLES_IN_A_LEGACY_FILE):
            yield stream
        return
    with zipfile.ZipFile(stream) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as member:
                    yield member


def _is_safe_stream(stream: IO[bytes]) -> bool:
    containers: set[int] = set()
    memo_size, previous = 0, ""
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if isinstance(argument, str | bytes) and len(argument) > LONGEST_NAME:
            return False
        if name.endswith("PUT") or name == "MEMOIZE":
            slot = argument if isinstance(argument, int) else memo_size
            containers.discard(slot)
            if previous in CONTAINERS:
                containers.add(slot)
            memo_size += 1
        elif (name.endswith("GET") and argument in containers) or name == "DUP":
            return False
        previous = name
    return True


ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

HEXADECIMAL = {"x": 2, "u": 4, "U": 8}

PLAIN = {quote: re.compile(rf"[^{quote}\\\n\r]*") for quote in "'\""}

SPACE = re.compile(r"[ \t\r\n]*")


def string_list(text: str) -> list[str]:
    """Parse a Python list of string literals; a ValueError says what is wrong and at which character."""
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


def _expect(text: str, at: int, expected: str) -> int:
    if text[at : at + 1] != expected:
        raise ValueError(f"expected {expected!r} at character {at}, found {_character_at(text, at)}")
    return at + 1


def _character_at(text: str, at: int) -> str:
    return repr(text[at]) if at < len(text) else "the end"


def _string(text: str, at: int) -> tuple[str, int]:
    """The quoted string that begins at character `at`, and the position behind it."""
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
        raise ValueError(f"character {at - 1} stands for U+{code:X}, which is not a character")
    return chr(code), at + 1 + len(digits)


NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")

CONSTANTS = {"None": None, "null": None, "True": True, "true": True, "False": False, "false": False}

CLOSING = {"[": "]", "(": ")", "{": "}"}

DEEPEST_LITERAL = 20


def literal(text: str, at: int = 0, depth: int = 0) -> tuple[Any, int]:
    """A value as Python or JSON writes it, from character `at`, and the position behind it; tuples become lists.

    A ValueError says what is wrong and where. Nothing is evaluated.
    """
    at = _skip(text, at)
    if depth > DEEPEST_LITERAL:
        raise ValueError(f"more than {DEEPEST_LITERAL} levels at character {at}")
    first = text[at : at + 1]
    if first in CLOSING:
        return _container(text, at, depth)
    if first in PLAIN:
        return _string(text, at)
    if number := NUMBER.match(text, at):
        written = number.group()
        return (int(written) if written.lstrip("-").isdecimal() and len(written) < 20 else float(written)), number.end()
    word = re.compile(r"[A-Za-z]+").match(text, at)
    if word and word.group() in CONSTANTS:
        return CONSTANTS[word.group()], word.end()
    raise ValueError(f"expected a value at character {at}, found {_character_at(text, at)}")


def _container(text: str, at: int, depth: int) -> tuple[Any, int]:
    opening = text[at]
    closing, at = CLOSING[opening], _skip(text, at + 1)
    items: list[Any] = []
    mapping: dict[str, Any] = {}
    while text[at : at + 1] != closing:
        value, at = literal(text, at, depth + 1)
        at = _skip(text, at)
        if opening == "{":
            if not isinstance(value, str):
                raise ValueError(f"a key that is not a string, before character {at}")
            mapping[value], at = literal(text, _expect(text, at, ":"), depth + 1)
            at = _skip(text, at)
        items.append(value)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != closing:
            raise ValueError(f"expected ',' or {closing!r} at character {at}, found {_character_at(text, at)}")
    return (mapping if opening == "{" else items), at + 1
