"""Claims about a picture, and whether they hold for what was detected in it.

A claim is about things with a shape, a colour, a size and a box, rendered or detected; those of the public suites
also use scores. Best-scoring boxes come first; of equal scores, the box that the detector named first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Protocol, TypeVar

from dpt.claims.boxes import RELATION_MARGIN, Box, related


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
    """A description of one thing; what is None is left open."""

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
        """Whether whatever the other noun describes is described by this one too."""
        return (
            self.colour in (None, other.colour)
            and self.shape in (None, other.shape)
            and self.size in (None, other.size)
        )

    def among(self, things: Sequence[AnyThing]) -> list[AnyThing]:
        return [thing for thing in things if self.matches(thing)]


@dataclass(frozen=True)
class Count:
    """There are `n` of the noun: exactly, or at least."""

    noun: Noun
    n: int
    exact: bool = True

    def holds(self, things: Sequence[Thing]) -> bool:
        found = len(self.noun.among(things))
        return found == self.n if self.exact else found >= self.n


@dataclass(frozen=True)
class Related:
    """Some thing of the first noun lies so to some other thing of the second."""

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
    """The first's centre lies strictly beyond the second's: a tie of centres is no relation."""

    first: Noun
    relation: str
    """left, right, above or below"""
    second: Noun
    best_only: bool
    """Whether only the best-scoring box of each noun is looked at; otherwise some pair of boxes is enough."""

    def holds(self, things: Sequence[Scored]) -> bool:
        firsts, seconds = self.first.among(things), self.second.among(things)
        if self.best_only:
            firsts, seconds = best(firsts, 1), best(seconds, 1)
        return any(_ahead(a.box, b.box, self.relation) > 0 for a in firsts for b in seconds if a is not b)


OVERLAP_TAKEN_OFF = 0.1
"""Of the two boxes' summed extents: so much of an offset does not count."""

DIRECTION = 0.5
"""Of the whole offset: so much must point the way that is asked for."""


@dataclass(frozen=True)
class RelationOfBest:
    """Each of the best boxes of one noun lies so to each of the best boxes of another, both being there.

    An offset counts beyond a tenth of the boxes' summed extents, and must be more than half of the distance.
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
        distance = hypot(_ahead(first, second, "left"), _ahead(first, second, "above"))
        beyond = _ahead(first, second, self.relation) - OVERLAP_TAKEN_OFF * extent
        return distance > 0 and beyond > DIRECTION * distance


@dataclass(frozen=True)
class ColourOfBest:
    """The `n` best boxes of the noun's shape all have its colour; fewer than n boxes do not do."""

    noun: Noun
    n: int

    def holds(self, things: Sequence[Scored]) -> bool:
        foremost = best(Noun(shape=self.noun.shape).among(things), self.n)
        return len(self.noun.among(foremost)) >= self.n


@dataclass(frozen=True)
class FewerThan:
    """There are fewer than `n` of the noun."""

    noun: Noun
    n: int

    def holds(self, things: Sequence[Scored]) -> bool:
        return len(self.noun.among(things)) < self.n


Claim = Fact | RelationByCentres | RelationOfBest | ColourOfBest | FewerThan


def nouns_of(claim: Claim) -> tuple[Noun, ...]:
    if isinstance(claim, Related | RelationByCentres | RelationOfBest):
        return claim.first, claim.second
    return (claim.noun,)


def _ahead(first: Box, second: Box, relation: str) -> float:
    """By how much the first's centre lies that way of the second's."""
    (ax, ay), (bx, by) = first.centre, second.centre
    return {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]
