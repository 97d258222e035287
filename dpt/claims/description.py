"""Descriptions of a scene: as facts, as a sentence, and parsed back from the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from dpt.claims.facts import Absent, Count, Fact, Noun, Related
from dpt.claims.words import (
    BACKGROUND_ENDING,
    NUMBERS,
    OPENINGS,
    RELATION_WORDS,
    VAGUE,
    choose_word,
    noun_words,
    scene_article,
    scene_plural,
)
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class Group:
    noun: Noun
    n: int
    vague: bool = False
    """Worded without a number: "some circles"."""


@dataclass(frozen=True)
class Description:
    groups: tuple[Group, ...]
    relation: str | None = None
    """Relation of the first group to the second, each of one thing."""
    absent: Noun | None = None
    exact: bool = True
    """Whether "a circle" means exactly one; in vague captions it means at least one."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        facts: list[Fact] = [
            Count(g.noun, 2 if g.vague else g.n, exact=self.exact and not g.vague) for g in self.groups
        ]
        if self.relation:
            facts.append(Related(self.groups[0].noun, self.relation, self.groups[1].noun))
        if self.absent:
            facts.append(Absent(self.absent))
        return tuple(facts)


@dataclass(frozen=True)
class Caption:
    text: str
    facts: tuple[Fact, ...]


def caption_text(description: Description, rng: KeyedRandom | None = None) -> str:
    """The description as a sentence; without rng, in its plainest wording."""
    parts = [_group_words(group, rng) for group in description.groups]
    if description.relation:
        relation = choose_word(RELATION_WORDS[description.relation], rng)
        parts = [f"{parts[0]} {relation} {parts[1]}", *parts[2:]]
    if description.absent:
        absent = " ".join(noun_words(description.absent, rng, many=True))
        parts[-1] += f" without {'any ' if rng and rng.chance(0.3) else ''}{absent}"
    text = " and ".join(parts)
    if rng is None:
        return text
    opening = rng.choice(OPENINGS)
    if rng.chance(0.1):
        text += f" {BACKGROUND_ENDING}"
    return f"{opening} {text}".strip()


def _group_words(group: Group, rng: KeyedRandom | None) -> str:
    many = group.n > 1
    words = noun_words(group.noun, rng, many)
    if group.vague:
        return " ".join([rng.choice(VAGUE) if rng else VAGUE[0], *words])
    if many:
        return " ".join([NUMBERS[group.n], *words])
    if rng and rng.chance(0.1):
        return " ".join(["one", *words])
    return " ".join([scene_article(words[0]), *words])


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
    description = Description(tuple(group for group in groups if group), relation, lacking)
    return description if caption_text(description) == sentence else None


def _split_at_relation(text: str) -> tuple[str, str | None, str]:
    for relation, (words, *_) in RELATION_WORDS.items():
        first, separator, rest = text.partition(f" {words} ")
        if separator:
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
