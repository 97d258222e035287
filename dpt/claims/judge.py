"""Checks the claims of a prompt against the detections in an image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from dpt.claims.boxes import Box
from dpt.claims.detections import DetectConfig, Detection, Detections
from dpt.claims.facts import (
    Absent,
    Claim,
    ColourOfBest,
    Count,
    FewerThan,
    Noun,
    Prompt,
    Related,
    RelationByCentres,
    RelationOfBest,
)

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
    """A requirement of a prompt, and whether the image meets it."""

    sort: str
    """readable, total, count, relation, absence, colour or surplus"""
    text: str
    met: bool


class JudgedClaim(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def met(self) -> bool: ...


def verdict_text(claims: Iterable[JudgedClaim]) -> str:
    """Right, or wrong and the first claim that does not hold."""
    fault = next((claim.text for claim in claims if not claim.met), None)
    return "right" if fault is None else f"wrong, not {fault}"


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
class JudgedObject:
    """A detection in the form that claims check: the `Thing` protocol."""

    shape: str
    colour: str
    size: str
    box: Box
    confidence: float


def judge(prompt: Prompt, detections: Detections, config: DetectConfig | None = None) -> Verdict:
    """Check every claim of the prompt.

    `config` is the query config of an open-vocabulary detector. It is None for a closed-set detector, which must also
    be able to read every object.
    """
    objects = judged_objects(prompt, detections, config)
    atoms = [Atom("readable", "everything readable", not detections.unreadable)] if config is None else []
    if prompt.closed:
        total = sum(claim.n for claim in prompt.facts if isinstance(claim, Count))
        atoms.append(Atom("total", f"{total} objects in all", len(objects) == total))
    atoms += [Atom(_SORTS[type(claim)], claim_text(claim), claim.holds(objects)) for claim in prompt.facts]
    return Verdict(tuple(atoms))


def judged_objects(prompt: Prompt, detections: Detections, config: DetectConfig | None = None) -> list[JudgedObject]:
    """The detections that count for the prompt, as things with a shape, a colour and a size."""
    if config is None:
        return [_detected_object(detection) for detection in detections.objects]
    nouns = config.phrases(prompt)
    counted = counted_detections(prompt, detections, config).objects
    return [_queried_object(detection, nouns[detection.label]) for detection in counted]


def counted_detections(prompt: Prompt, detections: Detections, config: DetectConfig) -> Detections:
    """Keep the detections of a phrase of the prompt whose score reaches the threshold of its category."""
    phrases = config.phrases(prompt)
    counted = (
        detection
        for detection in detections.objects
        if detection.label in phrases and config.counts(detection.confidence, prompt.category)
    )
    return replace(detections, objects=tuple(counted))


def claim_text(claim: Claim) -> str:
    match claim:
        case Count(noun, n, exact):
            return f"{'' if exact else 'at least '}{n} x {noun_text(noun)}"
        case (
            Related(first, relation, second)
            | RelationByCentres(first, relation, second)
            | RelationOfBest(first, _, relation, second)
        ):
            return f"{noun_text(first)} {relation} {noun_text(second)}"
        case ColourOfBest(noun, n):
            return f"the best {n} x {noun.shape} {noun.colour}"
        case FewerThan(noun, n):
            return f"fewer than {n} x {noun_text(noun)}"
        case Absent(noun):
            return f"no {noun_text(noun)}"


def _detected_object(detection: Detection) -> JudgedObject:
    colour, size = detection.colour or "", detection.size or ""
    return JudgedObject(detection.label, colour, size, detection.box, detection.confidence)


def _queried_object(detection: Detection, noun: Noun) -> JudgedObject:
    """The colour is that of the queried noun or, if it has none, the one classified from the box."""
    colour = noun.colour or detection.colour or ""
    return JudgedObject(noun.shape or "", colour, noun.size or "", detection.box, detection.confidence)


def noun_text(noun: Noun) -> str:
    return " ".join(word for word in (noun.size, noun.colour, noun.shape) if word) or "object"
