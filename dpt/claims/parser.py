"""Captions of the scene grammar parsed into descriptions: the inverse of `caption_text`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Protocol

from dpt.claims.description import Description, Group, caption_text
from dpt.claims.facts import Noun
from dpt.claims.words import NUMBERS, RELATION_WORDS, scene_plural


class Vocabulary(Protocol):
    """The words that a closed world knows."""

    @property
    def shapes(self) -> Sequence[str]: ...
    @property
    def colours(self) -> Sequence[str]: ...
    @property
    def sizes(self) -> Sequence[str]: ...


def parse_caption(text: str, world: Vocabulary) -> Description | None:
    """The description that `caption_text` puts into exactly this sentence; None for any other sentence."""
    sentence = " ".join(text.lower().rstrip(". ").split())
    positive, without, absent = sentence.partition(" without ")
    first, relation, rest = _split_at_relation(positive)
    parts = [*([first] if relation else []), *(rest if relation else positive).split(" and ")]
    groups = [_parse_group(part, world) for part in parts]
    lacking = _parse_noun(absent, world, many=True) if without else None
    if None in groups or (without and lacking is None):
        return None
    found = Description(tuple(group for group in groups if group), relation, lacking)
    return found if caption_text(found) == sentence else None


def _split_at_relation(text: str) -> tuple[str, str | None, str]:
    for relation, (words, *_) in RELATION_WORDS.items():
        first, found, rest = text.partition(f" {words} ")
        if found:
            return first, relation, rest
    return "", None, text


def _parse_group(text: str, world: Vocabulary) -> Group | None:
    number, _, rest = text.partition(" ")
    n = 1 if number in ("a", "an") else NUMBERS.index(number) if number in NUMBERS[2:] else 0
    noun = _parse_noun(rest, world, many=n > 1)
    return Group(noun, n) if n and noun else None


def _parse_noun(text: str, world: Vocabulary, many: bool) -> Noun | None:
    *before, head = text.split() or [""]
    shape = next((shape for shape in world.shapes if head == (scene_plural(shape) if many else shape)), None)
    for size, colour in product((None, *world.sizes), (None, *world.colours)):
        if shape and before == [word for word in (size, colour) if word]:
            return Noun(colour, shape, size)
    return None
