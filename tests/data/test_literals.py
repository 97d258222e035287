from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.untrusted import string_list

strings = st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("'\"\\[],\n\t\x00\x7f\xa0")))


@given(strings)
def test_repr_of_a_list_is_parsed(texts: list[str]) -> None:
    assert string_list(repr(texts)) == texts
    assert string_list(ascii(texts)) == texts
    assert string_list(f" [ {' , '.join(map(repr, texts))} ] \n") == texts


@given(st.text() | st.text("[]'\", \\nxu0aUF(){}:1"))
def test_other_text_is_refused_or_parsed_like_literal_eval(text: str) -> None:
    import ast

    try:
        parsed = string_list(text)
    except ValueError as error:
        assert str(error)
        return
    assert ast.literal_eval(text.strip()) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected '\[' at character 0, found the end"),
        ("['a'", r"expected '\]' at character 4, found the end"),
        ("['a',]", r"expected a quoted string at character 5, found '\]'"),
        ("['a' 'b']", r"expected '\]' at character 5"),
        ("['a'] + ['b']", "more after the end of the list, at character 6"),
        ("[a]", "expected a quoted string at character 1"),
        ("[1, 2]", "expected a quoted string at character 1"),
        ("[['a']]", "expected a quoted string at character 1"),
        ("[u'a']", "expected a quoted string"),
        ("['a", "not closed at character 3, before the end"),
        ("['a\n']", "not closed at character 3"),
        (r"['a\']", "not closed"),
        (r"['\q']", "unknown escape at character 2"),
        (r"['\x4']", "2 hexadecimal digits"),
        (r"['\ud800']", "which is not a character"),
        (r"['\U00110000']", "which is not a character"),
        ("__import__('os').system('true')", r"expected '\['"),
    ],
)
def test_errors_name_the_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        string_list(text)
