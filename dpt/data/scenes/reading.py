"""A plain sentence back into what it describes: the inverse of `say` without draws."""

from __future__ import annotations

from itertools import product

from dpt.data.scenes.captions import Description, Group, say
from dpt.data.scenes.facts import Noun
from dpt.data.scenes.words import NUMBERS, RELATION_WORDS, plural
from dpt.data.scenes.world import World


def read(text: str, world: World) -> Description | None:
    """What the sentence says if it is one that `say` would say of this world, word for word; None otherwise."""
    sentence = " ".join(text.lower().rstrip(". ").split())
    positive, without, absent = sentence.partition(" without ")
    first, relation, rest = _split_at_relation(positive)
    parts = [*([first] if relation else []), *(rest if relation else positive).split(" and ")]
    groups = [_group(part, world) for part in parts]
    lacking = _noun(absent, world, many=True) if without else None
    if None in groups or (without and lacking is None):
        return None
    found = Description(tuple(group for group in groups if group), relation, lacking)
    return found if say(found) == sentence else None


def _split_at_relation(text: str) -> tuple[str, str | None, str]:
    for relation, (words, *_) in RELATION_WORDS.items():
        first, found, rest = text.partition(f" {words} ")
        if found:
            return first, relation, rest
    return "", None, text


def _group(text: str, world: World) -> Group | None:
    number, _, rest = text.partition(" ")
    n = 1 if number in ("a", "an") else NUMBERS.index(number) if number in NUMBERS[2:] else 0
    noun = _noun(rest, world, many=n > 1)
    return Group(noun, n) if n and noun else None


def _noun(text: str, world: World, many: bool) -> Noun | None:
    *before, head = text.split() or [""]
    shape = next((shape for shape in world.shapes if head == (plural(shape) if many else shape)), None)
    for size, colour in product((None, *world.sizes), (None, *world.colours)):
        if shape and before == [word for word in (size, colour) if word]:
            return Noun(colour, shape, size)
    return None
