"""Boxes, claims about an image, whether they hold for the things in it, and prompts that make such claims.

A thing has a shape, a colour, a size and a box. Claims of the public suites also rank things by score; ties keep the
detector's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Protocol, TypeVar

RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")


RELATION_MARGIN = 6.0
"""Pixels between two centres from which a relation is stated or accepted."""


@dataclass(frozen=True)
class Box:
    """Corners in pixels; x to the right, y downwards."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    def gap_to(self, other: Box) -> float:
        """Pixels between two boxes along the axis that separates them best; negative if they overlap."""
        return max(self.x0 - other.x1, other.x0 - self.x1, self.y0 - other.y1, other.y0 - self.y1)


def related(first: Box, second: Box, relation: str, margin: float = RELATION_MARGIN) -> bool:
    """Whether the centre of `first` lies beyond that of `second` in the relation's direction by the margin."""
    (ax, ay), (bx, by) = first.centre, second.centre
    ahead = {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]
    return ahead >= margin


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (a.width * a.height + b.width * b.height - intersection)


class Thing(Protocol):
    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def box(self) -> Box: ...


AnyThing = TypeVar("AnyThing", bound=Thing)


@dataclass(frozen=True)
class Noun:
    """A description of a thing; None leaves an attribute open."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None

    def matches(self, thing: Thing) -> bool:
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.size in (None, thing.size)
        )

    def covers(self, other: Noun) -> bool:
        """Whether this noun matches everything that the other matches."""
        return (
            self.colour in (None, other.colour)
            and self.shape in (None, other.shape)
            and self.size in (None, other.size)
        )

    def among(self, things: Sequence[AnyThing]) -> list[AnyThing]:
        return [thing for thing in things if self.matches(thing)]


@dataclass(frozen=True)
class Count:
    """Exactly `n`, or at least `n`, things match the noun."""

    noun: Noun
    n: int
    exact: bool = True

    def holds(self, things: Sequence[Thing]) -> bool:
        count = len(self.noun.among(things))
        return count == self.n if self.exact else count >= self.n


@dataclass(frozen=True)
class Related:
    """Some thing of the first noun stands in the relation to some other thing of the second."""

    first: Noun
    relation: str
    second: Noun
    margin: float = RELATION_MARGIN

    def holds(self, things: Sequence[Thing]) -> bool:
        return any(
            a is not b and related(a.box, b.box, self.relation, self.margin)
            for a in self.first.among(things)
            for b in self.second.among(things)
        )


@dataclass(frozen=True)
class Absent:
    """Nothing matches the noun."""

    noun: Noun

    def holds(self, things: Sequence[Thing]) -> bool:
        return not self.noun.among(things)


Fact = Count | Related | Absent


def all_hold(facts: Sequence[Fact], things: Sequence[Thing]) -> bool:
    return all(fact.holds(things) for fact in facts)


class Scored(Thing, Protocol):
    @property
    def confidence(self) -> float: ...


AnyScored = TypeVar("AnyScored", bound=Scored)


def best(things: Sequence[AnyScored], n: int) -> list[AnyScored]:
    return sorted(things, key=lambda thing: -thing.confidence)[:n]


@dataclass(frozen=True)
class RelationByCentres:
    """As `Related`, decided by centres without a margin; equal centres are not related."""

    first: Noun
    relation: str
    """left, right, above or below"""
    second: Noun
    best_only: bool
    """Compare only the best-scoring box of each noun, instead of any pair."""

    def holds(self, things: Sequence[Scored]) -> bool:
        firsts, seconds = self.first.among(things), self.second.among(things)
        if self.best_only:
            firsts, seconds = best(firsts, 1), best(seconds, 1)
        return any(offset(a.box, b.box, self.relation) > 0 for a in firsts for b in seconds if a is not b)


IGNORED_OFFSET = 0.1
"""Fraction of the boxes' summed extents that is subtracted from an offset."""

MIN_ALIGNMENT = 0.5
"""Fraction of the centre distance that must lie along the relation's axis."""


@dataclass(frozen=True)
class RelationOfBest:
    """Each of the best boxes of one noun stands in the relation to each of the best boxes of another.

    As GenEval decides it: the offset, less a tenth of the boxes' summed extents, must exceed half of the distance.
    """

    first: Noun
    n_first: int
    relation: str
    second: Noun
    n_second: int

    def holds(self, things: Sequence[Scored]) -> bool:
        firsts, seconds = self.first.among(things), self.second.among(things)
        if len(firsts) < self.n_first or len(seconds) < self.n_second:
            return False
        pairs = ((a.box, b.box) for a in best(firsts, self.n_first) for b in best(seconds, self.n_second))
        return all(self._lies(a, b) for a, b in pairs)

    def _lies(self, first: Box, second: Box) -> bool:
        across = self.relation in ("left", "right")
        extent = first.width + second.width if across else first.height + second.height
        distance = hypot(offset(first, second, "left"), offset(first, second, "above"))
        beyond = offset(first, second, self.relation) - IGNORED_OFFSET * extent
        return distance > 0 and beyond > MIN_ALIGNMENT * distance


@dataclass(frozen=True)
class ColourOfBest:
    """The `n` best boxes of the noun's shape all have its colour; there must be n."""

    noun: Noun
    n: int

    def holds(self, things: Sequence[Scored]) -> bool:
        foremost = best(Noun(shape=self.noun.shape).among(things), self.n)
        return len(self.noun.among(foremost)) >= self.n


@dataclass(frozen=True)
class FewerThan:
    """Fewer than `n` things match the noun."""

    noun: Noun
    n: int

    def holds(self, things: Sequence[Scored]) -> bool:
        return len(self.noun.among(things)) < self.n


Claim = Fact | RelationByCentres | RelationOfBest | ColourOfBest | FewerThan


def nouns_of(claim: Claim) -> tuple[Noun, ...]:
    if isinstance(claim, Related | RelationByCentres | RelationOfBest):
        return claim.first, claim.second
    return (claim.noun,)


def offset(first: Box, second: Box, relation: str) -> float:
    """How far the first centre lies beyond the second in the direction of the relation."""
    (ax, ay), (bx, by) = first.centre, second.centre
    return {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]


@dataclass(frozen=True)
class Prompt:
    id: str
    category: str
    text: str
    facts: tuple[Claim, ...]
    closed: bool = True
    """Whether objects that no fact counts are a fault."""
    unseen: bool = False
    """Whether it names a combination that is held out of training."""
    where: str = ""
    """File and line it comes from."""
    source: str = ""
    """The line itself, for layouts that store it beside the images."""

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """The nouns of its facts, without repeats, in order."""
        return tuple(dict.fromkeys(noun for fact in self.facts for noun in nouns_of(fact)))

    @property
    def origin(self) -> str:
        return self.where or f"prompt {self.id}"
