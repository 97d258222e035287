"""What gets lost between a prompt and its tokens."""

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


def test_words_that_fall_apart_or_have_no_token_are_named_once_in_order(tokens) -> None:  # type: ignore[no-untyped-def]
    prompt = "A red Squid and 7 circles, a blue squid in Köln"
    assert unknown_words(tokens, prompt) == ["Squid", "7", "Köln"]


def test_punctuation_is_no_word(tokens) -> None:  # type: ignore[no-untyped-def]
    assert unknown_words(tokens, "a red circle, a blue square!?") == []


def test_the_end_token_written_out_is_not_an_unknown_word(tokens) -> None:  # type: ignore[no-untyped-def]
    assert unknown_words(tokens, f"a red circle {END}") == []


def test_a_large_vocabulary_may_spell_words_in_pieces(large) -> None:  # type: ignore[no-untyped-def]
    assert len(large.tokenize("squid")) > 1
    assert unknown_words(large, "a red squid") == []
    assert unknown_words(large, "a red squid 7") == ["7"]


def test_a_prompt_that_fits_loses_nothing(tokens) -> None:  # type: ignore[no-untyped-def]
    assert truncated_part(tokens, PROMPT, 12) == ""


def test_what_does_not_fit_is_quoted_as_it_was_written(tokens) -> None:  # type: ignore[no-untyped-def]
    # start + 4 words + end = 6
    assert truncated_part(tokens, "a Red circle  to the Left of", 6) == "the Left of"


def test_the_check_agrees_with_what_the_tokenizer_cuts(tokens) -> None:  # type: ignore[no-untyped-def]
    prompt = f"{PROMPT} and a star"
    for length in range(3, 16):
        kept = tokens(prompt, max_length=length, truncation=True, add_special_tokens=True)["input_ids"][1:-1]
        lost = truncated_part(tokens, prompt, length)
        assert tokens.decode(kept) == prompt.removesuffix(lost).strip()
