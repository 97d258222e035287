"""Captions for detections, in the wording of the prompt that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpt.claims.facts import Noun, Prompt
from dpt.claims.words import (
    ANYTHING,
    IRREGULAR_PLURALS,
    LMD_OPENING,
    NUMBERS,
    PHOTO_OPENINGS,
    RELATION_WORDS,
    article,
    plural,
)

NUMBER_WORDS = (*NUMBERS, "six", "seven", "eight", "nine", "ten")

PLACES = {"left": ("left", "right"), "right": ("right", "left"), "above": ("top", "bottom"), "below": ("bottom", "top")}


@dataclass(frozen=True)
class Phrase:
    """A noun and how many of it."""

    noun: Noun
    n: int


def count_limit(prompt: Prompt) -> int:
    """The largest number that a caption of this kind puts into words; rendered scenes have no word beyond five."""
    return len(NUMBERS) - 1 if prompt.closed else len(NUMBER_WORDS) - 1


def detected_caption(
    prompt: Prompt,
    phrases: Sequence[Phrase],
    relation: str | None,
    absent: Sequence[Noun],
    *,
    digits: bool,
    digits_for_one: bool,
    an: bool,
) -> str:
    """A caption that opens as the prompt does; `relation` holds between the first two phrases.

    `digits`: "2 dog" instead of "two dogs"; `digits_for_one`: and "1 dog" instead of "a dog". `an`: "an apple" instead
    of "a apple".
    """
    parts = [_counted(phrase, digits, digits_for_one, an) for phrase in phrases]
    if relation is not None:
        parts = [_related(prompt.text, parts[0], relation, parts[1]), *parts[2:]]
    text = " and ".join(parts)
    if absent:
        lacking = " and ".join(_words(noun, many=True) for noun in absent)
        text = f"{text} without {lacking}".strip()
    return _opened(prompt.text, text)


def _counted(phrase: Phrase, digits: bool, digits_for_one: bool, an: bool) -> str:
    words = _words(phrase.noun, many=False)
    if digits and (phrase.n != 1 or digits_for_one):
        return f"{phrase.n} {words}"
    if phrase.n == 1:
        return f"{article(words) if an else 'a'} {words}"
    return f"{NUMBER_WORDS[phrase.n]} {_words(phrase.noun, many=True)}"


def _words(noun: Noun, many: bool) -> str:
    head = noun.shape or ANYTHING[0]
    if many:
        head = IRREGULAR_PLURALS.get(head) or plural(head)
    return " ".join(word for word in (noun.size, noun.colour, head) if word)


def _related(original: str, first: str, relation: str, second: str) -> str:
    if any(f" on the {place}" in original for place in PLACES["left"] + PLACES["above"]):
        here, there = PLACES[relation]
        return f"{first} on the {here} and {second} on the {there}"
    long, short = RELATION_WORDS[relation][:2]
    as_geneval = any(f" {side} of " in original and f" to the {side} of " not in original for side in ("left", "right"))
    return f"{first} {short if as_geneval and relation in ('left', 'right') else long} {second}"


def _opened(original: str, text: str) -> str:
    if original.startswith(LMD_OPENING):
        return f"{LMD_OPENING} {text}" if text.startswith("without ") else f"{LMD_OPENING} with {text}"
    opening = next((o for o in PHOTO_OPENINGS if original.lower().startswith(f"{o} ")), "")
    return f"{opening} {text}".strip()
