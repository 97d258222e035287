"""What a text claims about a picture, and whether it is so.

Captions, hard negatives and the judge of generated pictures all use these few kinds of claim, so that "true"
means the same everywhere. A thing is anything with a shape, a colour, a size and a box, rendered or detected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dpt.data.scenes.layout import related
from dpt.data.scenes.world import RELATION_MARGIN, Box


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
