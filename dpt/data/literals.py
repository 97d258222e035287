"""Lists of strings written as Python would print them, "['a', \"b's\"]", read without running anything."""

from __future__ import annotations

import re

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
        raise ValueError(f"expected {wanted!r} at character {at}, found {_found(text, at)}")
    return at + 1


def _found(text: str, at: int) -> str:
    return repr(text[at]) if at < len(text) else "the end"


def _string(text: str, at: int) -> tuple[str, int]:
    """The quoted string that begins at `at`, and where it ends."""
    quote = text[at : at + 1]
    if quote not in PLAIN:
        raise ValueError(f"expected a quoted string at character {at}, found {_found(text, at)}")
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
            raise ValueError(f"the string is not closed at character {at}, before {_found(text, at)}")
        character, at = _escaped(text, at + 1)
        parts.append(character)


def _escaped(text: str, at: int) -> tuple[str, int]:
    kind = text[at : at + 1]
    if kind in ESCAPES:
        return ESCAPES[kind], at + 1
    if kind not in HEXADECIMAL:
        raise ValueError(f"unknown escape at character {at - 1}: a backslash before {_found(text, at)}")
    digits = text[at + 1 : at + 1 + HEXADECIMAL[kind]]
    if not re.fullmatch(rf"[0-9a-fA-F]{{{HEXADECIMAL[kind]}}}", digits):
        raise ValueError(f"expected {HEXADECIMAL[kind]} hexadecimal digits after character {at}")
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"character {at - 1} stands for U+{code:X}, which is no character")
    return chr(code), at + 1 + len(digits)
