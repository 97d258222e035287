"""Warnings about words that the tokenizer splits, does not know or truncates."""

from __future__ import annotations

import pytest

from dpt.backbone.text import truncated_part, unknown_words
from tests import tiny_models
from tests.tiny_models import END, PROMPT, WORDS


@pytest.fixture(scope="module")
def tokens():  # type: ignore[no-untyped-def]
    return tiny_models.tokenizer()


@pytest.fixture(scope="module")
def large():  # type: ignore[no-untyped-def]
    """A tokenizer with a vocabulary of CLIP's order of size: words in pieces are nothing unusual there."""
    made = tiny_models.tokenizer()
    made.add_tokens([f"filler{number}" for number in range(9000)])
    return made


def test_known_words_are_not_reported(tokens) -> None:  # type: ignore[no-untyped-def]
    assert unknown_words(tokens, PROMPT) == []
    assert unknown_words(tokens, " ".join(WORDS).upper()) == []
    assert unknown_words(tokens, "") == []


def test_unknown_and_split_words_are_reported_once_in_order(tokens) -> None:  # type: ignore[no-untyped-def]
    prompt = "A red Squid and 7 circles, a blue squid in Köln"
    assert unknown_words(tokens, prompt) == ["Squid", "7", "Köln"]


def test_punctuation_is_not_reported(tokens) -> None:  # type: ignore[no-untyped-def]
    assert unknown_words(tokens, "a red circle, a blue square!?") == []


def test_end_token_in_the_text_is_not_an_unknown_word(tokens) -> None:  # type: ignore[no-untyped-def]
    assert unknown_words(tokens, f"a red circle {END}") == []


def test_large_vocabulary_may_split_words(large) -> None:  # type: ignore[no-untyped-def]
    assert len(large.tokenize("squid")) > 1
    assert unknown_words(large, "a red squid") == []
    assert unknown_words(large, "a red squid 7") == ["7"]


def test_prompt_within_the_limit_is_not_truncated(tokens) -> None:  # type: ignore[no-untyped-def]
    assert truncated_part(tokens, PROMPT, 12) == ""


def test_truncated_part_is_quoted_verbatim(tokens) -> None:  # type: ignore[no-untyped-def]
    # start + 4 words + end = 6
    assert truncated_part(tokens, "a Red circle  to the Left of", 6) == "the Left of"


def test_truncation_check_agrees_with_the_tokenizer(tokens) -> None:  # type: ignore[no-untyped-def]
    prompt = f"{PROMPT} and a star"
    for length in range(3, 16):
        token_ids = tokens(prompt, max_length=length, truncation=True, add_special_tokens=True)["input_ids"][1:-1]
        lost = truncated_part(tokens, prompt, length)
        assert tokens.decode(token_ids) == prompt.removesuffix(lost).strip()
