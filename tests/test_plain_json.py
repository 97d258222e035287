"""A value or a ValueError, whatever the text is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.untrusted import parse_json

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_what_is_json_is_read(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == value == parse_json(text.encode())


@given(st.text() | st.text('[]{}",:\\u0d89eE+-.ntrufalsNIy ') | st.binary())
def test_anything_else_is_a_value_error(text: str | bytes) -> None:
    try:
        parse_json(text)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("9" * 5000, "digits"),
        ('["\\ud800"]', "half a character"),
        ('{"\\uDC00": 1}', "half a character"),
        (b"\xff", "decode"),
    ],
)
def test_what_is_wrong_is_said(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_whole_characters_in_two_halves_are_read() -> None:
    assert parse_json('"\\ud83d\\udc08"') == "🐈"
    assert parse_json('"\\ud800"', half_characters=True) == "\ud800"
