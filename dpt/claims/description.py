"""What a caption says, as a value, and as a sentence."""

from __future__ import annotations

from dataclasses import dataclass

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
)
from dpt.keyed_random import KeyedRandom


@dataclass(frozen=True)
class Group:
    noun: Noun
    n: int
    vague: bool = False
    """Said without a number: "some circles"."""


@dataclass(frozen=True)
class Description:
    groups: tuple[Group, ...]
    relation: str | None = None
    """Of the first group to the second; both are then single things."""
    absent: Noun | None = None
    exact: bool = True
    """Whether "a circle" means just one circle; in vague captions it means one at least."""

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


def caption_text(description: Description, draws: KeyedRandom | None = None) -> str:
    """The description in words; without draws always in the same, plainest ones."""
    parts = [_group_words(group, draws) for group in description.groups]
    if description.relation:
        relation = choose_word(RELATION_WORDS[description.relation], draws)
        parts = [f"{parts[0]} {relation} {parts[1]}", *parts[2:]]
    if description.absent:
        absent = " ".join(noun_words(description.absent, draws, many=True))
        parts[-1] += f" without {'any ' if draws and draws.chance(0.3) else ''}{absent}"
    text = " and ".join(parts)
    if draws is None:
        return text
    opening = draws.pick(OPENINGS)
    if draws.chance(0.1):
        text += f" {BACKGROUND_ENDING}"
    return f"{opening} {text}".strip()


def _group_words(group: Group, draws: KeyedRandom | None) -> str:
    many = group.n > 1
    words = noun_words(group.noun, draws, many)
    if group.vague:
        return " ".join([draws.pick(VAGUE) if draws else VAGUE[0], *words])
    if many:
        return " ".join([NUMBERS[group.n], *words])
    if draws and draws.chance(0.1):
        return " ".join(["one", *words])
    return " ".join([scene_article(words[0]), *words])
