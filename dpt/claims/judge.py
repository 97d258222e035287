"""Whether a picture shows what its prompt says, judged by the claims of the prompt and a detector's boxes."""

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
    """One requirement of a prompt, and whether the picture meets it."""

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
    """A detection as a `Thing` that claims are about."""

    shape: str
    colour: str
    size: str
    box: Box
    confidence: float


def judge(prompt: Prompt, detections: Detections, config: DetectConfig | None = None) -> Verdict:
    """`config`: how an open-vocabulary detector was queried; None for a closed-set detector, which names everything."""
    if config is None:
        things = [_detected_object(detection) for detection in detections.objects]
        atoms = [Atom("readable", "everything readable", not detections.unreadable)]
    else:
        nouns = config.phrases(prompt)
        counted = counted_detections(prompt, detections, config).objects
        things = [_queried_object(detection, nouns[detection.label]) for detection in counted]
        atoms = []
    if prompt.closed:
        total = sum(fact.n for fact in prompt.facts if isinstance(fact, Count))
        atoms.append(Atom("total", f"{total} objects in all", len(things) == total))
    atoms += [Atom(_SORTS[type(fact)], claim_text(fact), fact.holds(things)) for fact in prompt.facts]
    return Verdict(tuple(atoms))


def counted_detections(prompt: Prompt, detections: Detections, config: DetectConfig) -> Detections:
    """The boxes that answer a query of the prompt with a sufficient score for its category."""
    phrases = config.phrases(prompt)
    counted = (
        detection
        for detection in detections.objects
        if detection.label in phrases and config.counts(detection.confidence, prompt.category)
    )
    return replace(detections, objects=tuple(counted))


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
    """The label is the queried phrase. The colour comes from the query, or else was classified from the box."""
    colour = noun.colour or detection.colour or ""
    return _DetectedObject(noun.shape or "", colour, noun.size or "", detection.box, detection.confidence)


def _noun_text(noun: Noun) -> str:
    return " ".join(word for word in (noun.size, noun.colour, noun.shape) if word) or "object"
