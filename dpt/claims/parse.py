"""Parses prompts by rule into objects, relations and absences; whatever it does not fully understand is unsupported.

Three families of prompts are understood. Scene prompts describe rendered scenes ("two red circles to the left of a
blue square"): other objects are wrong. LMD prompts are the four templates of LLM-grounded Diffusion. Open prompts name
COCO classes ("a photo of a red car and two dogs", "a cat above a chair"): other objects are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from dpt.claims.facts import Absent, Claim, Count, Noun, Prompt, RelationByCentres
from dpt.claims.words import (
    BACKGROUND_ENDING,
    COCO_NOUNS,
    COLOUR_WORDS,
    IRREGULAR_PLURALS,
    LMD_OPENING,
    NUMBERS,
    PHOTO_OPENINGS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    Description,
    Group,
    plural,
    scene_plural,
)
from dpt.errors import UserError

MORE_COLOURS = ("brown", "black", "white", "gray", "grey")

MORE_NUMBERS = ("six", "seven", "eight", "nine", "ten", "eleven", "twelve")

LOCATIONS = {"left": "left", "right": "right", "top": "above", "bottom": "below"}

FACING = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}

MOST_OBJECTS = 20


class UnsupportedPrompt(UserError):
    """The rules do not understand the prompt."""

    def __init__(self, prompt: str, reason: str) -> None:
        super().__init__(f"the rule-based parser does not understand {prompt!r}: {reason}")


@dataclass(frozen=True)
class ObjectRelation:
    """Object number `first` stands in the relation (left, right, above, below) to object number `second`."""

    first: int
    relation: str
    second: int


@dataclass(frozen=True)
class ParsedPrompt:
    """What an image of the prompt holds."""

    text: str
    family: Literal["scene", "lmd", "open", "llm"]
    objects: tuple[Noun, ...] = ()
    """One noun per instance."""
    relations: tuple[ObjectRelation, ...] = ()
    absent: tuple[Noun, ...] = ()
    exact: bool = True
    """Whether further instances of these nouns are wrong."""
    closed: bool = False
    """Whether any other object is wrong."""
    facts: tuple[Claim, ...] = ()
    background: str = ""

    @property
    def claims(self) -> Prompt:
        """In the form that `judge` takes."""
        category = "attribution" if self.family == "lmd" and any(noun.colour for noun in self.objects) else self.family
        return Prompt("", category, self.text, self.facts, self.closed)

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """Every noun that it names, without repeats."""
        return tuple(dict.fromkeys((*self.objects, *self.absent)))


def parse_prompt(text: str) -> ParsedPrompt:
    """Raises `UnsupportedPrompt` for anything that it does not understand to the last word."""
    sentence = " ".join(text.lower().strip().rstrip(".").split())
    if sentence.startswith(LMD_OPENING.lower()):
        return _lmd(text, sentence.removeprefix(LMD_OPENING.lower()).strip())
    opening = next((o for o in sorted(PHOTO_OPENINGS, key=len, reverse=True) if sentence.startswith(f"{o} ")), "")
    body = sentence.removeprefix(opening).removesuffix(BACKGROUND_ENDING).strip()
    scene = _scene(body)
    if scene is not None:
        absent = tuple([scene.absent] if scene.absent else [])
        objects, relations = _instances(scene.groups, scene.relation)
        closed = scene.absent is None
        return ParsedPrompt(
            text, "scene", objects, relations, absent, closed=closed, facts=scene.facts, background=BACKGROUND_ENDING
        )
    return _open(text, body)


def is_supported(text: str) -> bool:
    try:
        parse_prompt(text)
    except UnsupportedPrompt:
        return False
    return True


Heads = Mapping[str, tuple[str, bool]]
"""From each form of a head noun to the noun and whether the form is plural."""


@cache
def scene_heads() -> Heads:
    forms = {word: (shape, False) for shape, words in SHAPE_WORDS.items() for word in words}
    return forms | {scene_plural(word): (shape, True) for word, (shape, _) in forms.items()}


@cache
def photo_heads() -> Heads:
    forms = {noun: (noun, False) for noun in COCO_NOUNS}
    plurals = {IRREGULAR_PLURALS.get(noun, plural(noun)): (noun, True) for noun in COCO_NOUNS}
    return plurals | forms


def _scene(body: str) -> Description | None:
    positive, without, rest = body.partition(" without ")
    split = _at_relation(positive)
    parts = [split[0], *split[2].split(" and ")] if split else positive.split(" and ")
    groups = [_group(part, scene_heads()) for part in parts]
    absent = _plural_noun(rest.removeprefix("any "), scene_heads()) if without else None
    if None in groups or (without and absent is None):
        return None
    whole = tuple(group for group in groups if group)
    return Description(whole, split[1] if split else None, absent)


def _open(text: str, body: str) -> ParsedPrompt:
    positive, without, rest = body.partition(" without ")
    split = _at_relation(positive)
    parts = [split[0], *split[2].split(" and ")] if split else positive.split(" and ")
    groups: list[Group] = []
    for part in parts:
        group = _group(part, photo_heads())
        if group is None:
            raise UnsupportedPrompt(text, f"{part!r} is not a number or article, attributes and a known noun")
        groups.append(group)
    absent = _plural_noun(rest.removeprefix("any "), photo_heads()) if without else None
    if without and absent is None:
        raise UnsupportedPrompt(text, f"{rest!r} is not the plural of a known noun")
    objects, relations = _instances(groups, split[1] if split else None)
    facts: list[Claim] = [Count(group.noun, group.n, exact=group.n > 1) for group in groups]
    if split:
        facts.append(RelationByCentres(groups[0].noun, split[1], groups[1].noun, best_only=False))
    facts += [Absent(absent)] if absent else []
    exact = any(group.n > 1 for group in groups)
    absences = (absent,) if absent else ()
    return ParsedPrompt(text, "open", objects, relations, absences, exact, False, tuple(facts), "a photo")


def _lmd(text: str, body: str) -> ParsedPrompt:
    """The templates, in the order in which the published code tries them."""
    heads, background = photo_heads(), LMD_OPENING.lower()
    if body.startswith("without "):
        absent = _plural_noun(body.removeprefix("without "), heads)
        if absent is None:
            raise UnsupportedPrompt(text, f"{body!r} does not end with the plural of a known noun")
        return ParsedPrompt(text, "lmd", absent=(absent,), facts=(Absent(absent),), background=background)
    parts = body.removeprefix("with ").split(" and ") if body.startswith("with ") else []
    places = [re.fullmatch(r"(.+) on the (left|right|top|bottom)", part) for part in parts]
    if len(parts) == 2 and places[0] and places[1]:
        groups = [_group(place[1], heads) for place in places if place]
        if groups[0] and groups[1] and all(g and g.n == 1 for g in groups) and FACING[places[0][2]] == places[1][2]:
            first, second = groups[0].noun, groups[1].noun
            relation = LOCATIONS[places[0][2]]
            counts = Count(first, 1, exact=False), Count(second, 1, exact=False)
            facts = (*counts, RelationByCentres(first, relation, second, best_only=True))
            relations = (ObjectRelation(0, relation, 1),)
            return ParsedPrompt(text, "lmd", (first, second), relations, facts=facts, background=background)
        raise UnsupportedPrompt(text, "the two places are not opposite, or hold more than one known object each")
    groups = [_group(part, heads) for part in parts]
    whole = tuple(group for group in groups if group)
    if not whole or len(whole) < len(groups):
        raise UnsupportedPrompt(text, "it is none of the four LMD templates with known nouns")
    objects, _ = _instances(whole, None)
    if len(whole) > 1 and all(group.n == 1 for group in whole):
        attribution = tuple(Count(group.noun, 1, exact=False) for group in whole)
        return ParsedPrompt(text, "lmd", objects, exact=False, facts=attribution, background=background)
    numeracy = tuple(Count(group.noun, group.n) for group in whole)
    return ParsedPrompt(text, "lmd", objects, facts=numeracy, background=background)


def _instances(
    groups: list[Group] | tuple[Group, ...], relation: str | None
) -> tuple[tuple[Noun, ...], tuple[ObjectRelation, ...]]:
    """A noun per instance; the relation holds between the first instances of the first two groups."""
    objects = tuple(group.noun for group in groups for _ in range(group.n))
    return objects, (ObjectRelation(0, relation, groups[0].n),) if relation else ()


def _at_relation(text: str) -> tuple[str, str, str] | None:
    for relation, wordings in RELATION_WORDS.items():
        for words in wordings:
            first, separator, rest = text.partition(f" {words} ")
            if separator:
                return first, relation, rest
    return None


def _group(text: str, heads: Heads) -> Group | None:
    number, _, rest = text.partition(" ")
    numbers = (*NUMBERS, *MORE_NUMBERS)
    n = 1 if number in ("a", "an") else int(number) if number.isdecimal() and len(number) < 3 else 0
    n = numbers.index(number) if number in numbers[1:] else n
    if not 1 <= n <= MOST_OBJECTS:
        return None
    noun = parse_noun(rest, heads, many=n > 1)
    return Group(noun, n) if noun else None


def _plural_noun(text: str, heads: Heads) -> Noun | None:
    return parse_noun(text, heads, many=True)


def parse_noun(text: str, heads: Heads, many: bool) -> Noun | None:
    """[size] [colour] head; the longest known head wins, so that "hot dog" is no dog."""
    words = text.split()
    for start in range(len(words)):
        head = heads.get(" ".join(words[start:]))
        if head is None or (head[1] != many and head[0] not in ("skis", "scissors", "sheep", "broccoli")):
            continue
        return _with_attributes(words[:start], head[0])
    return None


def _with_attributes(words: list[str], shape: str) -> Noun | None:
    sizes = {word: size for size, synonyms in SIZE_WORDS.items() for word in synonyms}
    size = sizes.get(words[0]) if words else None
    rest = words[1:] if size else words
    colour = colour_named(rest[0]) if rest else None
    if len(rest) > (1 if colour else 0):
        return None
    return Noun(colour, shape, size)


def colour_named(word: str) -> str | None:
    """The colour that a word stands for: "violet" is purple."""
    synonyms = {synonym: colour for colour, words in COLOUR_WORDS.items() for synonym in words}
    return word if word in MORE_COLOURS else synonyms.get(word)
