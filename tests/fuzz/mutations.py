"""Random changes of valid files, reproducible from the generator they are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
"""A valid file to a broken one."""

DEEP = 20_000
"""Nested brackets, far beyond any recursion limit."""
NUMBERS = (0, 1, -1, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
DIGITS = "9" * 5000
"""More digits than Python converts to an int."""
HUGE = "@huge@"
DEEPEST = "@deep@"
EDGES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    2**31, -(2**31), 2**63, -(2**63), 2**64, 10**30, 10**400, HUGE, DEEPEST,
    "", " ", "\0", "a\0b", "\ud800", "\u2028", "é", "a" * 2000, "x\ny", "../../up", "/etc/hostname", "..", "~", "C:\\x",
    "<b>&\"'", "all", "none", "1", "-1", "[]", "['a']", [], {}, [[]], [None], [0, 0, 0, 0], [1e308] * 4, {"": 0},
    {"a": {"b": []}},
)  # fmt: skip
TOKENS = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n", b"\t", b"\xe2\x80\xa8", b"\xed\xa0\x80",
    b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"[", b"]", b"{", b"}", b",", b":", b"=", b"NaN", b"-Infinity", b"1e999",
    b"-1", b"0", b"1e-400", b"99999999999999999999", b"null", b"true", b"../", b"/", b"%s", b"{0}", b"<script>",
    DIGITS.encode(), b"[" * DEEP, b"A" * 10_000,
)  # fmt: skip


def mutate_bytes(content: bytes, rng: Random) -> bytes:
    """Mostly one change, sometimes several."""
    whole = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        rng.choice(CHANGES)(whole, rng)
    return bytes(whole)


def mutate_json(content: bytes, rng: Random) -> bytes:
    """Replace, remove or repeat one value of a JSON file; the rest stays JSON."""
    try:
        tree = json.loads(content)
    except ValueError:
        return mutate_bytes(content, rng)
    holder = [tree]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_value(holder, rng)
    return _written(holder[0])


def mutate_json_line(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(lines[at], rng)
    return b"\n".join(lines)


def mutate_fields(content: bytes, rng: Random) -> bytes:
    """Replace one field in one row of a tab-separated table."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    fields = lines[at].split(b"\t")
    value = rng.choice(EDGES)
    text = value if isinstance(value, str) else repr(value)
    fields[rng.randrange(len(fields))] = _unfolded(text).encode("utf-8", "surrogatepass")
    lines[at] = b"\t".join(fields)
    return b"\n".join(lines)


def _change_value(holder: list[Any], rng: Random) -> None:
    """Descend to a random value and change it."""
    at: Any = holder
    while True:
        keys = list(range(len(at))) if isinstance(at, list) else list(at)
        key = rng.choice(keys)
        below = at[key]
        if not (isinstance(below, list | dict) and below) or (at is not holder and rng.random() < 0.2):
            break
        at = below
    match rng.randrange(6):
        case 0 if at is not holder:
            del at[key]
        case 1 if isinstance(at, list):
            at.insert(key, deepcopy(rng.choice(EDGES)))
        case 1:
            at[_key(rng)] = deepcopy(below)
        case 2 if isinstance(at, list):
            at.extend(deepcopy(at[:8]))
        case _:
            at[key] = deepcopy(rng.choice(EDGES))


def _key(rng: Random) -> str:
    return _unfolded(str(rng.choice(EDGES)))[:3000]


def _written(tree: Any) -> bytes:
    return _unfolded(json.dumps(tree).replace(f'"{HUGE}"', HUGE).replace(f'"{DEEPEST}"', DEEPEST)).encode()


def _unfolded(text: str) -> str:
    return text.replace(HUGE, DIGITS).replace(DEEPEST, "[" * DEEP + "]" * DEEP)


def _flip(whole: bytearray, rng: Random) -> None:
    if whole:
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)


def _set(whole: bytearray, rng: Random) -> None:
    if whole:
        whole[rng.randrange(len(whole))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(whole: bytearray, rng: Random) -> None:
    del whole[rng.randrange(len(whole) + 1) :]


def _remove(whole: bytearray, rng: Random) -> None:
    at = rng.randrange(len(whole) + 1)
    del whole[at : at + rng.choice((1, 2, 8, 64, rng.randrange(1, 1000)))]


def _insert(whole: bytearray, rng: Random) -> None:
    at = rng.randrange(len(whole) + 1)
    whole[at:at] = rng.choice(TOKENS)


def _replace(whole: bytearray, rng: Random) -> None:
    at, token = rng.randrange(len(whole) + 1), rng.choice(TOKENS)
    whole[at : at + len(token)] = token


def _double(whole: bytearray, rng: Random) -> None:
    at = rng.randrange(len(whole) + 1)
    part = whole[at : at + rng.randrange(1, 400)]
    whole[at:at] = part * rng.choice((1, 1, 2, 50))


def _number(whole: bytearray, rng: Random) -> None:
    """Overwrite bytes as a length, offset or size in a header would be written."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) & (256**size - 1)
    at = rng.randrange(min(len(whole), rng.choice((16, 64, 10**9))) + 1)
    whole[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


CHANGES = (_flip, _set, _cut, _remove, _insert, _replace, _double, _number)
