"""The rule-based layout controller: the nearest layout that a parsed prompt allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpt.claims.facts import Box, Noun, offset
from dpt.claims.layout import Layout, PlacedObject, box_at, check_ids
from dpt.claims.parse import ObjectRelation, ParsedPrompt

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class LayoutRules:
    """Sizes and distances as fractions of the image."""

    object_size: float = 0.33
    """Side of an added object, if no object of the image gives another."""
    gap: float = 0.06
    """Distance to keep between objects."""
    margin: float = 0.03
    """Distance to keep from the edges."""
    separation: float = 0.2
    """Distance of two centres along the axis of their relation, for objects that are placed."""
    accepted: float = 0.05
    """The distance from which existing objects count as related."""
    accepted_in_scenes: float = 0.1
    """`accepted` in rendered scenes, whose judge has a margin."""
    smallest: float = 0.5
    """Smallest scale of an added object that must fit between others."""
    smallest_in_scenes: float = 0.9
    """`smallest` in rendered scenes, whose objects have fixed sizes."""


DEFAULT_RULES = LayoutRules()

GRID = 17
"""Candidate centres per axis."""

SCALES = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Scales of an added object, in the order of the search."""

NO_MATCH = 10.0
"""Assignment cost of an object of another shape."""


@dataclass
class _Slot:
    """An object of the goal layout: the current object that fills it, if any, and its goal box."""

    noun: Noun
    thing: PlacedObject | None
    box: Box | None


def propose(parsed: ParsedPrompt, layout: Layout, rules: LayoutRules = DEFAULT_RULES) -> Layout:
    """Keep what is right; else change an attribute, then add; move only what violates a relation.

    A layout that is right is returned unchanged. The result depends on nothing but the arguments.
    """
    check_ids(layout, "current layout")
    if parsed.family == "scene":
        rules = replace(rules, accepted=rules.accepted_in_scenes, smallest=rules.smallest_in_scenes)
    matched = _match(parsed.objects, layout)
    slots = [_Slot(*_filled(noun, thing)) for noun, thing in zip(parsed.objects, matched, strict=True)]
    used = {thing.id for thing in matched if thing is not None}
    kept = [thing for thing in layout if thing.id not in used and not _is_wrong(thing, parsed)]
    _place_all(slots, [thing.box for thing in kept], parsed.relations, _side(slots, layout, rules), rules)
    goals = {slot.thing.id: slot for slot in slots if slot.thing is not None}
    result = [
        replace(thing, noun=goals[thing.id].noun, box=goals[thing.id].box or thing.box) if thing.id in goals else thing
        for thing in layout
        if thing.id in goals or thing in kept
    ]
    ids = {thing.id for thing in layout}
    for slot in slots:
        if slot.thing is None:
            assert slot.box is not None
            added = PlacedObject("", slot.noun, slot.box)
            added = replace(added, id=_free_id(added.name, ids))
            ids.add(added.id)
            result.append(added)
    return tuple(result)


def _filled(noun: Noun, thing: PlacedObject | None) -> tuple[Noun, PlacedObject | None, Box | None]:
    """The fields of a slot: attributes that the noun leaves open are those of the object."""
    if thing is None:
        return noun, None, None
    return Noun(noun.colour or thing.noun.colour, noun.shape, noun.size or thing.noun.size), thing, thing.box


def _free_id(name: str, used: set[str]) -> str:
    number = 1
    while f"{name} #{number}" in used:
        number += 1
    return f"{name} #{number}"


def _match(nouns: Sequence[Noun], layout: Layout) -> list[PlacedObject | None]:
    """The object for each noun: of the same attributes, else of the same shape; crowded objects last."""
    from scipy.optimize import linear_sum_assignment

    if not nouns or not layout:
        return [None] * len(nouns)
    cost = np.full((len(nouns), len(layout)), NO_MATCH)
    for (i, noun), (j, thing) in product(enumerate(nouns), enumerate(layout)):
        if noun.shape == thing.noun.shape:
            cost[i, j] = 0.0 if noun.covers(thing.noun) else 1.0
            cost[i, j] += 1e-2 * _crowding(thing, layout) + 1e-6 * j
    result: list[PlacedObject | None] = [None] * len(nouns)
    for i, j in zip(*linear_sum_assignment(cost), strict=True):
        if cost[i, j] < NO_MATCH:
            result[i] = layout[j]
    return result


def _crowding(thing: PlacedObject, layout: Layout) -> float:
    """From 0 for an object alone to 1 for one that touches another."""
    gaps = [thing.box.gap_to(other.box) for other in layout if other is not thing]
    return 1 - min(max(min(gaps, default=1.0), 0.0), 1.0)


def _is_wrong(thing: PlacedObject, parsed: ParsedPrompt) -> bool:
    """Whether an object that fills no slot must go."""
    if parsed.closed or not thing.readable or any(noun.covers(thing.noun) for noun in parsed.absent):
        return True
    return parsed.exact and any(noun.covers(thing.noun) for noun in parsed.objects)


def _side(slots: Sequence[_Slot], layout: Layout, rules: LayoutRules) -> float:
    """Side of added objects: the mean of the readable objects', within reason."""
    sides = [(thing.box.width * thing.box.height) ** 0.5 for thing in layout if thing.readable]
    mean = sum(sides) / len(sides) if sides else rules.object_size
    room = (1 - 2 * rules.margin + rules.gap) / np.ceil(max(1, len(slots)) ** 0.5) - rules.gap
    return float(min(max(mean, rules.object_size / 2), 0.5, room))


def _place_all(
    slots: list[_Slot], fixed: list[Box], relations: Sequence[ObjectRelation], side: float, rules: LayoutRules
) -> None:
    """Place what is added, moving as few of the others as the relations allow."""
    added = [i for i, slot in enumerate(slots) if slot.thing is None]
    violated = [r for r in relations if not _holds(r, slots, rules)]
    if not added and not violated:
        return
    ends = [i for r in violated for i in (r.first, r.second) if slots[i].thing is not None]
    settled = [i for i in range(len(slots)) if i not in added]
    choices = [[], *([i] for i in dict.fromkeys(ends)), ends, settled]
    best: tuple[float, list[Box]] | None = None
    for moved in choices:
        for swapped in (False, True):
            if swapped and len(moved) < 2:
                continue
            search = _Placement(slots, fixed, relations, side, rules)
            cost, boxes = search.run([*added, *moved], swapped)
            if best is None or cost < best[0] - 1e-9:
                best = cost, boxes
        assert best is not None
        if best[0] < 1 and len(moved) != 1:  # nothing violated; of single objects, the one that moves least
            break
    assert best is not None
    for slot, box in zip(slots, best[1], strict=True):
        slot.box = box


def _holds(relation: ObjectRelation, slots: Sequence[_Slot], rules: LayoutRules) -> bool:
    first, second = slots[relation.first].box, slots[relation.second].box
    return first is not None and second is not None and offset(first, second, relation.relation) >= rules.accepted


class _Placement:
    """Coordinate descent over the centres of some objects, on a grid.

    An overlap costs 1 or more, a violated relation 10 or more.
    """

    def __init__(
        self, slots: list[_Slot], fixed: list[Box], relations: Sequence[ObjectRelation], side: float, rules: LayoutRules
    ) -> None:
        self.slots, self.fixed, self.relations, self.rules, self.side = slots, fixed, relations, rules, side
        centre = box_at((0.5, 0.5), side, side)
        self.boxes = [slot.box or centre for slot in slots]
        self.placed = {i for i, slot in enumerate(slots) if slot.box is not None}

    def run(self, movable: Sequence[int], swapped: bool) -> tuple[float, list[Box]]:
        if swapped:
            a, b = movable[-2:]
            first, second = self.boxes[a], self.boxes[b]
            self.boxes[a] = box_at(second.centre, first.width, first.height)
            self.boxes[b] = box_at(first.centre, second.width, second.height)
        total = np.inf
        for _ in range(4):
            costs = []
            for i in movable:
                cost, self.boxes[i] = self._best_place(i)
                self.placed.add(i)
                costs.append(cost)
            if sum(costs) >= total - 1e-9:
                break
            total = sum(costs)
        total = total if movable else 0.0
        total += sum(10 for r in self.relations if offset(*self._ends(r), r.relation) < self.rules.accepted)
        return float(total), list(self.boxes)

    def _ends(self, relation: ObjectRelation) -> tuple[Box, Box]:
        return self.boxes[relation.first], self.boxes[relation.second]

    def _best_place(self, i: int) -> tuple[float, Box]:
        box, is_new = self.boxes[i], self.slots[i].thing is None
        best = (np.inf, box)
        for scale in [scale for scale in SCALES if scale >= self.rules.smallest] if is_new else (1.0,):
            width, height = (self.side * scale,) * 2 if is_new else (box.width, box.height)
            x, y = self._candidates(width, height, None if is_new else box)
            cost = self._cost(i, x, y, width, height) + 0.2 * (1 - scale)
            if not is_new:
                original = self.slots[i].box
                assert original is not None
                cost += 0.1 * (np.abs(x - original.centre[0]) + np.abs(y - original.centre[1]))
            at = int(cost.argmin())
            if cost[at] < best[0] - 1e-9:
                best = (float(cost[at]), box_at((float(x[at]), float(y[at])), width, height))
            if best[0] < 1:
                break
        return best

    def _candidates(self, width: float, height: float, box: Box | None) -> tuple[Floats, Floats]:
        margin = self.rules.margin
        xs = np.linspace(min(margin + width / 2, 0.5), max(1 - margin - width / 2, 0.5), GRID)
        ys = np.linspace(min(margin + height / 2, 0.5), max(1 - margin - height / 2, 0.5), GRID)
        if box is not None:  # along one axis it can stay where it is
            xs, ys = np.append(xs, box.centre[0]), np.append(ys, box.centre[1])
        x, y = np.meshgrid(xs, ys)
        return x.ravel(), y.ravel()

    def _cost(self, i: int, x: Floats, y: Floats, width: float, height: float) -> Floats:
        rules = self.rules
        others = [self.boxes[j] for j in self.placed if j != i] + self.fixed
        cost = np.zeros_like(x)
        for other in others:
            gap_x = np.maximum(x - width / 2 - other.x1, other.x0 - x - width / 2)
            gap_y = np.maximum(y - height / 2 - other.y1, other.y0 - y - height / 2)
            short = np.maximum(rules.gap - np.maximum(gap_x, gap_y), 0)
            cost += np.where(short > 1e-9, 1 + 10 * short, 0)
        for relation in self.relations:
            if i in (relation.first, relation.second):
                other_end = relation.second if i == relation.first else relation.first
                if other_end in self.placed:
                    cost += self._violation(relation, i == relation.first, self.boxes[other_end], x, y)
        edge = np.minimum.reduce([x - width / 2, y - height / 2, 1 - x - width / 2, 1 - y - height / 2])
        return np.asarray(cost + 5 * np.maximum(min(rules.margin, 0.5 - width / 2) - edge, 0))

    def _violation(self, relation: ObjectRelation, is_first: bool, other: Box, x: Floats, y: Floats) -> Floats:
        across = relation.relation in ("left", "right")
        offset = (other.centre[0] - x) if across else (other.centre[1] - y)
        if relation.relation in ("right", "below"):
            offset = -offset
        if not is_first:
            offset = -offset
        short = np.maximum(self.rules.separation - offset, 0)
        return np.asarray(np.where(short > 1e-9, 10 + 10 * short, 0))
