"""Layouts: which objects an image holds, and where, as detectors report them and controllers plan them.

Boxes of layouts are in fractions of the image: x and y from 0 to 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from dpt.claims.boxes import Box, overlap
from dpt.claims.detections import Detection, Detections, Unreadable
from dpt.claims.facts import Noun
from dpt.claims.judge import noun_text
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

    What stands before the head is the attribute, which `Noun.colour` holds, also where it is no colour.
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
    """Objects seen by two passes of an open-vocabulary detector: one for "red dog", one for "dog".

    Each region becomes one object: the best-scoring attribute on it, or none. Surplus objects are kept: a controller
    cannot correct what it does not see.
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
