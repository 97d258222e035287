"""Does a picture show what its prompt says? Counting only: objects that a detector read, facts that must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpt.claims.boxes import Box
from dpt.claims.detections import DetectConfig, Detection, Detections
from dpt.claims.facts import (
    Absent,
    Claim,
    ColourOfBest,
    Count,
    FewerThan,
    Noun,
    Related,
    RelationByCentres,
    RelationOfBest,
)
from dpt.claims.prompt import Prompt

_SORTS: dict[type, str] = {
    Count: "count",
    Related: "relation",
    RelationByCentres: "relation",
    RelationOfBest: "relation",
    Absent: "absence",
    ColourOfBest: "colour",
    FewerThan: "surplus",
}


@dataclass(frozen=True)
class Atom:
    """One requirement and whether it was met."""

    sort: str
    """readable, total, count, relation, absence, colour or surplus"""
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
class _DetectedObject:
    """A detection as a thing that facts can be about."""

    shape: str
    colour: str
    size: str
    box: Box
    confidence: float


def judge(prompt: Prompt, seen: Detections, asking: DetectConfig | None = None) -> Verdict:
    """`asking`: how the detector was told what to look for; None for one that names all there is, or owns up."""
    if asking is None:
        things = [_detected_object(detection) for detection in seen.objects]
        atoms = [Atom("readable", "everything readable", not seen.unreadable)]
    else:
        nouns = asking.phrases(prompt)
        things = [_queried_object(one, nouns[one.label]) for one in counted_detections(prompt, seen, asking).objects]
        atoms = []
    if prompt.closed:
        asked = sum(fact.n for fact in prompt.facts if isinstance(fact, Count))
        atoms.append(Atom("total", f"{asked} objects in all", len(things) == asked))
    atoms += [Atom(_SORTS[type(fact)], claim_text(fact), fact.holds(things)) for fact in prompt.facts]
    return Verdict(tuple(atoms))


def counted_detections(prompt: Prompt, seen: Detections, asking: DetectConfig) -> Detections:
    """What the suite's rules let count: answers to what was asked, of enough score for the prompt's category."""
    asked = asking.phrases(prompt)
    enough = (one for one in seen.objects if one.label in asked and asking.counts(one.confidence, prompt.category))
    return replace(seen, objects=tuple(enough))


def claim_text(fact: Claim) -> str:
    match fact:
        case Count(noun, n, exact):
            return f"{'' if exact else 'at least '}{n} x {_noun_text(noun)}"
        case (
            Related(first, relation, second)
            | RelationByCentres(first, relation, second)
            | RelationOfBest(first, _, relation, second)
        ):
            return f"{_noun_text(first)} {relation} {_noun_text(second)}"
        case ColourOfBest(noun, n):
            return f"the best {n} x {noun.shape} {noun.colour}"
        case FewerThan(noun, n):
            return f"fewer than {n} x {_noun_text(noun)}"
        case Absent(noun):
            return f"no {_noun_text(noun)}"


def _detected_object(detection: Detection) -> _DetectedObject:
    colour, size = detection.colour or "", detection.size or ""
    return _DetectedObject(detection.label, colour, size, detection.box, detection.confidence)


def _queried_object(detection: Detection, noun: Noun) -> _DetectedObject:
    """The label is what was asked for. Its noun's colour was part of that, or else has been read off the box."""
    colour = noun.colour or detection.colour or ""
    return _DetectedObject(noun.shape or "", colour, noun.size or "", detection.box, detection.confidence)


def _noun_text(noun: Noun) -> str:
    return " ".join(word for word in (noun.size, noun.colour, noun.shape) if word) or "object"
