"""The little English that prompts and queries need: an article and a plural."""

from __future__ import annotations

VOWELS = "aeiou"
HISSING = ("s", "x", "z", "ch", "sh")


def article(words: str) -> str:
    """By the first letter, as the public suites have it: "an umbrella", but also "a skis"."""
    return "an" if words[:1].lower() in tuple(VOWELS) else "a"


def with_article(words: str) -> str:
    return f"{article(words)} {words}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith(HISSING) else f"{noun}s"
