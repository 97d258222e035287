"""Editing instructions by rule ("move the red circle left", "add a dog above the car"); others are unsupported."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from dpt.claims.controller import DEFAULT_RULES, LayoutRules, propose
from dpt.claims.facts import Box, Noun
from dpt.claims.layout import Layout, PlacedObject, box_at
from dpt.claims.parse import Heads, ObjectRelation, ParsedPrompt, colour_named, parse_noun, photo_heads, scene_heads
from dpt.claims.words import NUMBERS, RELATION_WORDS
from dpt.errors import UserError

SUPERLATIVES: dict[str, Callable[[Box], float]] = {
    "leftmost": lambda box: box.centre[0],
    "rightmost": lambda box: -box.centre[0],
    "topmost": lambda box: box.centre[1],
    "highest": lambda box: box.centre[1],
    "lowest": lambda box: -box.centre[1],
    "bottommost": lambda box: -box.centre[1],
    "largest": lambda box: -box.width * box.height,
    "biggest": lambda box: -box.width * box.height,
    "smallest": lambda box: box.width * box.height,
}

DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "upwards": (0, -1), "downwards": (0, 1),
}  # fmt: skip

STEP, SMALL_STEP = 0.2, 0.1

LARGER, SMALLER = 1.25, 0.8

PLACES = {
    "left": (0.2, None), "right": (0.8, None), "top": (None, 0.2), "bottom": (None, 0.8),
    "centre": (0.5, 0.5), "center": (0.5, 0.5), "middle": (0.5, 0.5),
    "top left": (0.2, 0.2), "top right": (0.8, 0.2), "bottom left": (0.2, 0.8), "bottom right": (0.8, 0.8),
}  # fmt: skip


EXAMPLES = "; the rules follow such as 'remove the red circle' or 'move the dog to the left', a language model others"


class UnsupportedInstruction(UserError):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"the instruction {text!r} cannot be followed: {reason}{EXAMPLES}")


@dataclass(frozen=True)
class Reference:
    """A phrase that names objects of an image."""

    noun: Noun
    superlative: str | None = None
    all: bool = False

    def find(self, layout: Layout, text: str) -> list[PlacedObject]:
        """The objects it refers to: exactly one, unless it says "all" or has a superlative."""
        matching = [thing for thing in layout if self.noun.covers(thing.noun)]
        if not matching:
            raise UnsupportedInstruction(text, f"the detector sees no {self._name} in the picture")
        if self.superlative:
            return [min(matching, key=lambda thing: SUPERLATIVES[self.superlative or ""](thing.box))]
        if len(matching) > 1 and not self.all:
            raise UnsupportedInstruction(
                text, f"{len(matching)} objects match {self._name!r}: say which one, as in 'the leftmost {self._name}'"
            )
        return matching

    @property
    def _name(self) -> str:
        return " ".join(word for word in (self.noun.size, self.noun.colour, self.noun.shape) if word)


@dataclass(frozen=True)
class Instruction:
    text: str
    nouns: tuple[Noun, ...]
    """What the detector must look for."""
    apply: Callable[[Layout], Layout]
    """From the layout of the image to the goal."""
    added: tuple[Noun, ...] = ()


def parse_instruction(text: str, rules: LayoutRules = DEFAULT_RULES) -> Instruction:
    """Raises `UnsupportedInstruction` for any other sentence; so does `apply` for what the image does not allow."""
    sentence = " ".join(text.lower().strip().rstrip(".!").split())
    for pattern, build in PATTERNS:
        if found := re.fullmatch(pattern, sentence):
            return build(text, found.groups(), rules)
    raise UnsupportedInstruction(
        text, "the rules know remove, add, move, swap, replace, make bigger or smaller, and turn into a colour"
    )


@cache
def _heads() -> Heads:
    return {**photo_heads(), **scene_heads()}


def _reference(text: str, phrase: str) -> Reference:
    words = phrase.split()
    everything = words[:1] == ["all"]
    words = words[1:] if everything else words
    words = words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words
    superlative = words[0] if words and words[0] in SUPERLATIVES else None
    words = words[1:] if superlative else words
    for many in (False, True):
        noun = parse_noun(" ".join(words), _heads(), many)
        if noun is not None:
            return Reference(noun, superlative, everything or many)
    raise UnsupportedInstruction(text, f"{phrase!r} does not name a known object")


def _new_objects(text: str, phrase: str) -> list[Noun]:
    number, _, rest = phrase.partition(" ")
    n = 1 if number in ("a", "an", "another") else NUMBERS.index(number) if number in NUMBERS[1:] else 0
    noun = parse_noun(rest, _heads(), many=n > 1) if n else None
    if noun is None:
        raise UnsupportedInstruction(text, f"{phrase!r} is not a number or article with a known object")
    return [noun] * n


def _remove(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what = _reference(text, groups[0] or "")

    def apply(layout: Layout) -> Layout:
        gone = {thing.id for thing in what.find(layout, text)}
        return tuple(thing for thing in layout if thing.id not in gone)

    return Instruction(text, (what.noun,), apply)


def _add(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    new = _new_objects(text, groups[0] or "")
    relation = next((name for name, words in RELATION_WORDS.items() if groups[1] in words), None)
    anchor = _reference(text, groups[2] or "") if relation else None

    def apply(layout: Layout) -> Layout:
        """Placed by the controller, as the objects of a prompt that names everything that is there."""
        fixed = [thing for thing in layout if thing.readable]
        objects = [thing.noun for thing in fixed] + new
        relations: tuple[ObjectRelation, ...] = ()
        if anchor is not None and relation is not None:
            (other,) = anchor.find(layout, text)[:1]
            at = next(i for i, thing in enumerate(fixed) if thing.id == other.id)
            relations = tuple(ObjectRelation(len(fixed) + k, relation, at) for k in range(len(new)))
        parsed = ParsedPrompt(text, "llm", tuple(objects), relations, exact=False)
        return propose(parsed, layout, rules)

    nouns = (*new[:1], *((anchor.noun,) if anchor else ()))
    return Instruction(text, nouns, apply, tuple(new))


def _move(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, direction, slightly = _reference(text, groups[0] or ""), DIRECTIONS[groups[1] or ""], bool(groups[2])
    step = SMALL_STEP if slightly else STEP

    def goal(box: Box) -> Box:
        x, y = box.centre
        return _inside((x + step * direction[0], y + step * direction[1]), box.width, box.height)

    return _each(text, what, goal)


def _move_to(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, (px, py) = _reference(text, groups[0] or ""), PLACES[groups[1] or ""]

    def goal(box: Box) -> Box:
        x, y = box.centre
        return _inside((x if px is None else px, y if py is None else py), box.width, box.height)

    return _each(text, what, goal)


def _swap(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    first, second = _reference(text, groups[0] or ""), _reference(text, groups[1] or "")

    def apply(layout: Layout) -> Layout:
        (a,), (b,) = first.find(layout, text)[:1], second.find(layout, text)[:1]
        goals = {
            a.id: _inside(b.box.centre, a.box.width, a.box.height),
            b.id: _inside(a.box.centre, b.box.width, b.box.height),
        }
        return tuple(replace(thing, box=goals.get(thing.id, thing.box)) for thing in layout)

    return Instruction(text, (first.noun, second.noun), apply)


def _replace(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, (new,) = _reference(text, groups[0] or ""), _new_objects(text, groups[1] or "")[:1]

    def apply(layout: Layout) -> Layout:
        gone = {thing.id for thing in what.find(layout, text)}
        result, ids = [], {thing.id for thing in layout}
        for thing in layout:
            if thing.id not in gone:
                result.append(thing)
                continue
            placed = PlacedObject("", new, thing.box)
            number = next(n for n in range(1, len(ids) + 2) if f"{placed.name} #{n}" not in ids)
            result.append(replace(placed, id=f"{placed.name} #{number}"))
            ids.add(result[-1].id)
        return tuple(result)

    return Instruction(text, (what.noun, new), apply, (new,))


def _resize(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, how = _reference(text, groups[0] or ""), groups[1] or ""
    factor = {"smaller": SMALLER, "twice as large": 2.0, "twice as big": 2.0}.get(how, LARGER)
    return _scaled(text, what, factor)


def _resize_by(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, times = _reference(text, groups[0] or ""), float(groups[1] or 0)
    if not 1 <= times <= 4:
        raise UnsupportedInstruction(text, f"it can be made 1 to 4 times as large, not {times:g} times")
    return _scaled(text, what, times)


def _scaled(text: str, what: Reference, factor: float) -> Instruction:
    def goal(box: Box) -> Box:
        width, height = min(box.width * factor, 1.0), min(box.height * factor, 1.0)
        return _inside((box.centre[0], box.y1 - height / 2), width, height)  # things stand on the ground

    return _each(text, what, goal)


def _recolour(text: str, groups: Sequence[str | None], rules: LayoutRules) -> Instruction:
    what, colour = _reference(text, groups[0] or ""), colour_named(groups[1] or "")
    if colour is None:
        raise UnsupportedInstruction(text, f"{groups[1]!r} is not a known colour")

    def apply(layout: Layout) -> Layout:
        changed = {thing.id for thing in what.find(layout, text)}
        return tuple(
            replace(thing, noun=replace(thing.noun, colour=colour)) if thing.id in changed else thing
            for thing in layout
        )

    return Instruction(text, (what.noun, replace(what.noun, colour=colour)), apply)


def _each(text: str, what: Reference, goal: Callable[[Box], Box]) -> Instruction:
    def apply(layout: Layout) -> Layout:
        moved = {thing.id for thing in what.find(layout, text)}
        return tuple(replace(thing, box=goal(thing.box)) if thing.id in moved else thing for thing in layout)

    return Instruction(text, (what.noun,), apply)


def _inside(centre: tuple[float, float], width: float, height: float) -> Box:
    """The box with this centre, shifted into the image."""
    x = min(max(centre[0], width / 2), 1 - width / 2)
    y = min(max(centre[1], height / 2), 1 - height / 2)
    return box_at((x, y), width, height)


_RELATIONS = "|".join(sorted((w for words in RELATION_WORDS.values() for w in words), key=len, reverse=True))
_DIRECTIONS = "|".join(sorted(DIRECTIONS, key=len, reverse=True))
_PLACES = "|".join(sorted(PLACES, key=len, reverse=True))

PATTERNS: tuple[tuple[str, Callable[[str, Sequence[str | None], LayoutRules], Instruction]], ...] = (
    (r"(?:remove|delete|erase) (.+)", _remove),
    (rf"(?:add|insert|put) (.+?)(?: ({_RELATIONS}) (.+))?", _add),
    (rf"(?:move|shift) (.+?) (?:to the )?({_DIRECTIONS})(?: (slightly|a little|a bit))?", _move),
    (rf"(?:move|put) (.+?) (?:to|at|into) the ({_PLACES})(?: corner)?", _move_to),
    (r"(?:swap|exchange) (.+) (?:and|with) (.+)", _swap),
    (r"replace (.+) (?:with|by) (.+)", _replace),
    (r"make (.+) ([0-9]+(?:\.[0-9]+)?) times (?:as large|as big|larger|bigger)", _resize_by),
    (r"make (.+) (bigger|larger|smaller|twice as large|twice as big)", _resize),
    (r"(?:make|turn|paint|colour|color|recolour|change) (.+?) (?:into |to )?([a-z]+)", _recolour),
)
