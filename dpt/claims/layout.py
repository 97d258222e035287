"""Layouts: which objects an image holds, and where; and the difference of two layouts as edits.

Boxes of layouts are in fractions of the image: x and y from 0 to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import numpy as np

from dpt.claims.facts import Box, Noun, overlap
from dpt.claims.judge import Atom, Detection, Detections, Unreadable, Verdict, noun_text
from dpt.claims.words import with_article
from dpt.errors import UserError

UNREADABLE = "unreadable region"
"""The noun of a region that shows something the detector cannot name."""


@dataclass(frozen=True)
class PlacedObject:
    id: str
    """The name with a number, as in "red circle #1"; it stays with the object through a plan."""
    noun: Noun
    box: Box

    @property
    def name(self) -> str:
        """Colour and noun, without the size, which detectors report and prompts rarely name."""
        return noun_text(replace(self.noun, size=None))

    @property
    def readable(self) -> bool:
        return self.noun.shape != UNREADABLE


Layout = tuple[PlacedObject, ...]


def layout_of(detections: Detections, width: int, height: int) -> Layout:
    """The layout of an image of this size in pixels, unreadable regions last."""
    regions: list[tuple[Noun, Box]] = [
        (Noun(detection.colour, detection.label, detection.size), detection.box) for detection in detections.objects
    ]
    regions += [(Noun(shape=UNREADABLE), region.box) for region in detections.unreadable]
    return numbered([PlacedObject("", noun, to_fractions(box, width, height)) for noun, box in regions])


def detections_of(layout: Layout, width: int, height: int) -> Detections:
    """The inverse of `layout_of`, with full confidence."""
    return Detections(
        tuple(
            Detection(o.noun.shape or "", to_pixels(o.box, width, height), 1.0, o.noun.colour, o.noun.size)
            for o in layout
            if o.readable
        ),
        tuple(Unreadable(to_pixels(o.box, width, height), UNREADABLE) for o in layout if not o.readable),
    )


def numbered(objects: Sequence[PlacedObject]) -> Layout:
    """With ids "name #1", "name #2", ... in their order."""
    counts: Counter[str] = Counter()
    result = []
    for thing in objects:
        counts[thing.name] += 1
        result.append(replace(thing, id=f"{thing.name} #{counts[thing.name]}"))
    return tuple(result)


def to_fractions(box: Box, width: int, height: int) -> Box:
    return Box(box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)


def to_pixels(box: Box, width: int, height: int) -> Box:
    return Box(box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)


def box_at(centre: tuple[float, float], width: float, height: float) -> Box:
    x, y = centre
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


MAX_CLIPPED = 0.01

MIN_SIDE = 1 / 64
"""Smallest side of a goal box, as a fraction: two cells of the latents of a 1024-pixel image."""


def check_box(box: Box, name: str) -> tuple[Box, str | None]:
    """The box clipped to the image, and a message if that cut off more than a hundredth."""
    corners = (box.x0, box.y0, box.x1, box.y1)
    if not all(map(isfinite, corners)):
        raise UserError(f"the box of {name} has a coordinate that is not a finite number")
    clipped = Box(*(min(max(value, 0.0), 1.0) for value in corners))
    if clipped.width < MIN_SIDE or clipped.height < MIN_SIDE:
        raise UserError(f"the box of {name} has no area inside the picture: its coordinates are fractions from 0 to 1")
    cut = max(abs(a - b) for a, b in zip(corners, (clipped.x0, clipped.y0, clipped.x1, clipped.y1), strict=True))
    return clipped, f"the box of {name} reaches past the picture and was clipped" if cut > MAX_CLIPPED else None


def split_name(name: str, nouns: Collection[str]) -> tuple[Noun, str]:
    """A published name ("green palm tree #2") as a noun and the id; the longest known noun at its end is the head.

    The words before the head are the attribute; `Noun.colour` holds it, even if it is no colour.
    """
    words = name.partition("#")[0].split()
    if not words:
        raise UserError(f"the object {name!r} has no name before its number")
    starts = [start for start in range(len(words)) if " ".join(words[start:]) in nouns]
    start = min(starts, default=len(words) - 1)
    return Noun(" ".join(words[:start]) or None, " ".join(words[start:])), " ".join(name.split())


SAME_REGION = 0.7
"""IoU from which a box of an attributed phrase and one of the bare noun show the same object."""


def merge_passes(
    attributed: Sequence[Detection], bare: Sequence[Detection], same: float = SAME_REGION
) -> tuple[Detection, ...]:
    """Objects that two passes of an open-vocabulary detector find: one for "red dog", one for "dog".

    Each region becomes one object, with the attribute of the highest score, or none. Surplus objects are kept, so that
    a controller can delete them.
    """
    kept: list[Detection] = []
    for detection in sorted(attributed, key=lambda d: -d.confidence):
        rivals = (other for other in kept if other.label == detection.label)
        if all(overlap(detection.box, other.box) <= same for other in rivals):
            kept.append(detection)
    left = list(bare)
    for detection in kept:
        near = [d for d in left if d.label == detection.label and overlap(d.box, detection.box) > same]
        if near:
            left.remove(max(near, key=lambda d: overlap(d.box, detection.box)))
    return (*kept, *left)


EditKind = Literal["delete", "add", "move", "resize", "attribute"]

SAME_PLACE = 0.9
"""IoU from which two boxes are the same place."""

SAME_OBJECT = 0.5
"""IoU from which objects of one noun, without a common id, are the same object."""

SAME_SIZE = 0.02
"""Relative difference of sides up to which a box keeps its size."""

PLACE_TOLERANCE = 0.06
"""How far an edited object's centre may be from its goal, in fractions: one latent cell of a small image."""

SIZE_TOLERANCE = 1.18
"""By which factor its sides may differ from the goal's."""


@dataclass(frozen=True)
class Edit:
    """The change of one object: without a goal it is deleted, without a current object it is added."""

    current: PlacedObject | None
    goal: PlacedObject | None

    @property
    def kinds(self) -> tuple[EditKind, ...]:
        """Empty if the object is preserved."""
        if self.current is None:
            return ("add",)
        if self.goal is None:
            return ("delete",)
        kinds: list[EditKind] = []
        if self.current.noun != self.goal.noun:
            kinds.append("attribute")
        if overlap(self.current.box, self.goal.box) < SAME_PLACE:
            kinds.append("resize" if _resized(self.current.box, self.goal.box) else "move")
        return tuple(kinds)

    @property
    def in_words(self) -> str:
        """In words, such as "move red circle #1 left"."""
        if self.current is None:
            assert self.goal is not None
            return f"add {with_article(self.goal.name)} {_place(self.goal.box)}"
        if self.goal is None:
            return f"delete {self.current.id}"
        phrases = {
            "attribute": f"make it {with_article(self.goal.name)}",
            "move": f"move it {_direction(self.current.box, self.goal.box)}",
            "resize": f"make it {'larger' if _area(self.goal.box) > _area(self.current.box) else 'smaller'}",
        }
        parts = [phrases[kind] for kind in self.kinds] or ["keep it"]
        return " and ".join([parts[0].replace("it", self.current.id, 1), *parts[1:]])


def diff(current: Layout, goal: Layout) -> tuple[Edit, ...]:
    """One edit per object, preserved ones included: those of current objects in their order, then additions.

    Objects with the same id are the same object. Of the rest, objects of one noun that overlap are matched for the
    greatest total overlap. No object is used twice.
    """
    check_ids(current, "current layout")
    check_ids(goal, "goal")
    partner: dict[str, PlacedObject] = {}
    goals = {thing.id: thing for thing in goal}
    for thing in current:
        if thing.id in goals and goals[thing.id].noun.shape == thing.noun.shape:
            partner[thing.id] = goals.pop(thing.id)
    left = [thing for thing in current if thing.id not in partner]
    for thing, other in _match(left, list(goals.values())):
        partner[thing.id] = goals.pop(other.id)
    edits = [Edit(thing, partner.get(thing.id)) for thing in current]
    return (*edits, *(Edit(None, thing) for thing in goal if thing.id in goals))


def changes(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits that change something."""
    return tuple(edit for edit in edits if edit.kinds)


def apply_edits(edits: Sequence[Edit]) -> Layout:
    """The layout after the edits."""
    return tuple(edit.goal for edit in edits if edit.goal is not None)


def renamed_to_nearest(current: Layout, goal: Layout) -> Layout:
    """The goal with ids exchanged among equal objects so that they move the least.

    A controller that moves "cat #1" to the place of "cat #2" and drops #2 means: delete #1.
    """
    result = list(goal)
    for noun in dict.fromkeys(thing.noun for thing in goal):
        places = [i for i, thing in enumerate(goal) if thing.noun == noun]
        old = [thing for thing in current if thing.noun == noun]
        moved = {goal[i].id for i in places} & {thing.id for thing in old}
        if not moved:
            continue
        distance = np.array([[_distance(thing.box, goal[i].box) for i in places] for thing in old])
        rows, columns = _assignment(distance)
        before = sum(_distance(t.box, goal[i].box) for t in old for i in places if t.id == goal[i].id)
        if len(moved) == len(rows) and distance[rows, columns].sum() < before - 1e-9:
            taken = [old[r].id for r in rows]
            spare = [goal[i].id for i in places if goal[i].id not in taken]
            ids = {int(c): old[r].id for r, c in zip(rows, columns, strict=True)}
            for column, i in enumerate(places):
                result[i] = replace(goal[i], id=ids[column] if column in ids else spare.pop(0))
    return tuple(result)


def with_unique_ids(layout: Layout) -> tuple[Layout, list[str]]:
    """Give repeated ids the next free number; also returns a message for each."""
    used: set[str] = set()
    result, messages = [], []
    for thing in layout:
        stem, number = thing.id.partition(" #")[0], 1
        unique = thing.id
        while unique in used:
            number += 1
            unique = f"{stem} #{number}"
        if unique != thing.id:
            messages.append(f"two objects are called {thing.id}: the second is now {unique}")
        used.add(unique)
        result.append(replace(thing, id=unique))
    return tuple(result), messages


def check_ids(layout: Layout, where: str) -> None:
    ids = [thing.id for thing in layout]
    repeated = next((id_ for id_ in ids if ids.count(id_) > 1), None)
    if repeated is not None:
        raise ValueError(f"the {where} has two objects {repeated}: number them with with_unique_ids")


def _match(current: list[PlacedObject], goal: list[PlacedObject]) -> list[tuple[PlacedObject, PlacedObject]]:
    if not current or not goal:
        return []
    gain = np.array([[overlap(a.box, b.box) if a.noun.shape == b.noun.shape else 0.0 for b in goal] for a in current])
    gain[gain < SAME_OBJECT] = 0
    rows, columns = _assignment(-gain)
    return [(current[r], goal[c]) for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0]


def _assignment(cost: np.ndarray) -> tuple[list[int], list[int]]:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost)
    return [int(r) for r in rows], [int(c) for c in columns]


def _resized(a: Box, b: Box) -> bool:
    ratios = (b.width / a.width, b.height / a.height)
    return any(abs(ratio - 1) > SAME_SIZE for ratio in ratios)


def _area(box: Box) -> float:
    return box.width * box.height


def _distance(a: Box, b: Box) -> float:
    (ax, ay), (bx, by) = a.centre, b.centre
    return abs(ax - bx) + abs(ay - by)


def _direction(a: Box, b: Box) -> str:
    (ax, ay), (bx, by) = a.centre, b.centre
    dx, dy = bx - ax, by - ay
    across = "right" if dx > 0 else "left" if dx < 0 else ""
    along = "down" if dy > 0 else "up" if dy < 0 else ""
    if abs(dx) > 2 * abs(dy):
        return across
    if abs(dy) > 2 * abs(dx):
        return along
    return f"{along} and {across}" if across and along else across or along or "nowhere"


def _place(box: Box) -> str:
    x, y = box.centre
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    along = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    return f"at the {' '.join(part for part in (along, across) if part) or 'centre'}"


def layout_verdict(goal: Layout, detected: Layout) -> Verdict:
    """Whether each object of the goal is where it should be, and whether there is nothing else."""
    matched = {id_ for id_ in _placed(goal, detected)}
    atoms = [
        Atom("place", f"{thing.name} {_place(thing.box)}", thing.id in matched) for thing in goal if thing.readable
    ]
    surplus = len(detected) - len(matched)
    return Verdict((*atoms, Atom("surplus", "nothing else", surplus <= 0)))


def _placed(goal: Layout, detected: Layout) -> list[str]:
    """Ids of the goal's objects that are detected at their places."""
    if not goal or not detected:
        return []
    gain = np.array([[1.0 if _is_at(a, b) else 0.0 for b in detected] for a in goal])
    return [goal[r].id for r, c in zip(*_assignment(-gain), strict=True) if gain[r, c] > 0]


def _is_at(goal: PlacedObject, detected: PlacedObject) -> bool:
    (gx, gy), (sx, sy) = goal.box.centre, detected.box.centre
    near = max(abs(gx - sx), abs(gy - sy)) <= PLACE_TOLERANCE
    sides = ((detected.box.width, goal.box.width), (detected.box.height, goal.box.height))
    sized = all(1 / SIZE_TOLERANCE <= a / b <= SIZE_TOLERANCE for a, b in sides)
    return near and sized and replace(goal.noun, size=None).covers(detected.noun)
