"""Parse captions and expressions back into facts from their words alone, to check their wording."""

from __future__ import annotations

import re
from dataclasses import replace

from dpt.claims.facts import Absent, Count, Fact, Noun, Related
from dpt.claims.words import (
    ANYTHING,
    BACKGROUND_ENDING,
    COLOUR_WORDS,
    EXTREMES,
    NUMBERS,
    OPENINGS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    scene_plural,
)
from dpt.data.example import Example, Negative
from dpt.data.scenes.referring import ExtremeReference, NounReference, Reference, RelativeReference

COLOURS = {word: colour for colour, words in COLOUR_WORDS.items() for word in words}
SHAPES = {form: shape for shape, words in SHAPE_WORDS.items() for word in words for form in (word, scene_plural(word))}
RELATIONS = {words: relation for relation, ways in RELATION_WORDS.items() for words in ways}
SIDES = {word: side for side, word in EXTREMES.items()}
SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
LONGEST_FIRST = sorted(RELATIONS, key=len, reverse=True)


def facts_of(text: str) -> list[Fact]:
    """The claims of a clean caption."""
    for opening in sorted(filter(None, OPENINGS), key=len, reverse=True):
        text = text.removeprefix(f"{opening} ")
    text, _, absent = text.removesuffix(f" {BACKGROUND_ENDING}").partition(" without ")
    facts: list[Fact] = [Absent(_noun(absent.removeprefix("any ")))] if absent else []
    parts = re.split(rf" (and|{'|'.join(LONGEST_FIRST)}) ", text)
    counts = [_count(part) for part in parts[::2]]
    for before, link, after in zip(counts, parts[1::2], counts[1:], strict=False):
        if link != "and":
            facts.append(Related(before.noun, RELATIONS[link], after.noun))
    return [*facts, *counts]


def _count(words: str) -> Count:
    number, rest = words.split(" ", 1)
    return Count(_noun(rest), 1 if number in ("a", "an") else NUMBERS.index(number))


def _noun(words: str) -> Noun:
    *before, head = words.split()
    (colour,) = before or [""]
    assert head in SHAPES or head in ANYTHING
    return Noun(COLOURS[colour] if colour else None, SHAPES.get(head))


def reference_of(text: str) -> Reference:
    """The reference of a referring expression, from its words alone."""
    parts = re.split(rf" ({'|'.join(LONGEST_FIRST)}) the ", text.removeprefix("the "))
    if len(parts) == 3:
        return RelativeReference(_noun_of_any_size(parts[0]), RELATIONS[parts[1]], _noun_of_any_size(parts[2]))
    first, _, rest = parts[0].partition(" ")
    if first in SIDES:
        return ExtremeReference(_noun_of_any_size(rest), SIDES[first])
    return NounReference(_noun_of_any_size(parts[0]))


def _noun_of_any_size(words: str) -> Noun:
    first, _, rest = words.partition(" ")
    return replace(_noun(rest), size=SIZES[first]) if first in SIZES else _noun(words)


def negatives_of(example: Example) -> tuple[str, Negative, Negative]:
    """The caption, the hard and the random negative of an example that has them."""
    assert example.caption is not None and example.negatives is not None and example.negatives.random is not None
    return example.caption, example.negatives.hard, example.negatives.random
