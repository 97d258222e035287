from __future__ import annotations

from dpt.backbone.text import unknown_words
from dpt.claims.words import vocabulary
from dpt.pocket.clip import UNKNOWN, build_tokenizer, learn_merges


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = build_tokenizer(vocabulary(), 32)
    for word in vocabulary():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert unknown_words(tokenizer, " ".join(vocabulary())) == []


def test_other_words_are_reported_as_unknown() -> None:
    tokenizer = build_tokenizer(vocabulary(), 32)
    assert unknown_words(tokenizer, "a red Hexagon left of a blue zebra") == ["Hexagon", "zebra"]
    assert UNKNOWN in tokenizer.tokenize("ß")


def test_merges_are_deterministic() -> None:
    assert learn_merges(vocabulary()) == learn_merges(vocabulary())
    symbols, merges = learn_merges(["low", "lower"])
    assert "low</w>" in symbols and "lower</w>" in symbols
    assert len(merges) == len({"".join(pair) for pair in merges})
