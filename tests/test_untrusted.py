"""Hostile files: JSON is a value or a ValueError, and only regular files of bounded size are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.errors import UserError
from dpt.untrusted import open_regular, parse_json, read_json, read_text
from dpt.weights import read_weights

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_json_round_trips(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == value == parse_json(text.encode())


@given(st.text() | st.text('[]{}",:\\u0d89eE+-.ntrufalsNIy ') | st.binary())
def test_other_text_is_a_value_error(text: str | bytes) -> None:
    try:
        parse_json(text)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("9" * 5000, "digits"),
        ('["\\ud800"]', "half a character"),
        ('{"\\uDC00": 1}', "half a character"),
        (b"\xff", "decode"),
    ],
)
def test_error_names_the_fault(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_surrogate_pairs_are_characters() -> None:
    assert parse_json('"\\ud83d\\udc08"') == "🐈"
    assert parse_json('"\\ud800"', surrogates=True) == "\ud800"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Reading a pipe would block forever, and /dev/zero would fill the memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("device", "a device"), ("folder", "a folder")):
        for read in (read_json, read_weights, read_text):
            with pytest.raises(UserError, match=f"{name} is not a regular file but {kind}"):
                read(tmp_path / name)


def test_files_are_bounded_and_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "large").write_bytes(b"1" * 100)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "large")
    with pytest.raises(UserError, match="large has 0 MiB; the limit is 0 MiB"):
        read_text(tmp_path / "large", largest=99)
    assert open_regular(tmp_path / "data" / "link", 100).read() == b"1" * 100
    with pytest.raises(UserError, match=r"link is a link to a file outside .*data, which is not followed"):
        open_regular(tmp_path / "data" / "link", within=tmp_path / "data")
    (tmp_path / "latin").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"latin is not UTF-8 text \(byte 1\)"):
        read_text(tmp_path / "latin")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbftext")
    assert read_text(tmp_path / "marked") == "text"
