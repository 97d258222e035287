"""Does a picture show what its prompt says? Counting only: objects that a detector read, facts that must hold."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.data.scenes.facts import Absent, Count, Fact, Noun, Related
from dpt.data.scenes.world import Box
from dpt.evaluation.detectors.base import Detection, Detections
from dpt.evaluation.suites.base import Prompt

_SORTS: dict[type, str] = {Count: "count", Related: "relation", Absent: "absence"}


@dataclass(frozen=True)
class Atom:
    """One requirement and whether it was met."""

    sort: str
    """readable, total, count, relation or absence"""
    text: str
    met: bool


@dataclass(frozen=True)
class Verdict:
    atoms: tuple[Atom, ...]

    @property
    def passed(self) -> bool:
        return all(atom.met for atom in self.atoms)

    @property
    def first_fault(self) -> Atom | None:
        return next((atom for atom in self.atoms if not atom.met), None)


@dataclass(frozen=True)
class _Seen:
    """A detection as a thing that facts can be about."""

    shape: str
    colour: str
    size: str
    box: Box


def judge(prompt: Prompt, seen: Detections) -> Verdict:
    things = [_thing(detection) for detection in seen.objects]
    atoms = [Atom("readable", "everything readable", not seen.unreadable)]
    if prompt.closed:
        asked = sum(fact.n for fact in prompt.facts if isinstance(fact, Count))
        atoms.append(Atom("total", f"{asked} objects in all", len(things) == asked))
    atoms += [Atom(_SORTS[type(fact)], in_words(fact), fact.holds(things)) for fact in prompt.facts]
    return Verdict(tuple(atoms))


def in_words(fact: Fact) -> str:
    if isinstance(fact, Count):
        return f"{'' if fact.exact else 'at least '}{fact.n} x {_noun_in_words(fact.noun)}"
    if isinstance(fact, Related):
        return f"{_noun_in_words(fact.first)} {fact.relation} {_noun_in_words(fact.second)}"
    return f"no {_noun_in_words(fact.noun)}"


def _thing(detection: Detection) -> _Seen:
    return _Seen(detection.label, detection.colour or "", detection.size or "", detection.box)


def _noun_in_words(noun: Noun) -> str:
    return " ".join(word for word in (noun.size, noun.colour, noun.shape) if word) or "object"
