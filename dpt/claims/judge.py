"""What a detector reads from an image, and the check of a prompt's claims against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from dpt.claims.facts import (
    Absent,
    Box,
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
from dpt.claims.words import article


@dataclass(frozen=True)
class DetectConfig:
    """How an open-vocabulary detector is queried, and which of its boxes count. Closed-set detectors ignore it."""

    query: str
    """The text query; {noun} is replaced by the noun, {a} by its article."""
    threshold: float
    above: bool = False
    """Whether a score must exceed the threshold; otherwise reaching it is enough."""
    thresholds: tuple[tuple[str, float], ...] = ()
    """Thresholds of single categories that differ."""
    nms: float | None = None
    """IoU above which the lower-scoring of two boxes of one noun is dropped."""
    colours: tuple[str, ...] = ()
    """Colours that a box is classified into. Empty: the colour is part of the query ("red car")."""

    @property
    def coloured(self) -> bool:
        return not self.colours

    @property
    def lowest(self) -> float:
        return min([self.threshold, *(value for _, value in self.thresholds)])

    def counts(self, score: float, category: str | None = None) -> bool:
        """Whether a box with this score counts in the category; without one, whether it counts in any."""
        least = self.lowest if category is None else dict(self.thresholds).get(category, self.threshold)
        return score > least if self.above else score >= least

    def phrase(self, noun: Noun) -> str:
        parts = (noun.size, noun.colour if self.coloured else None, noun.shape)
        return " ".join(part for part in parts if part)

    def phrases(self, prompt: Prompt) -> dict[str, Noun]:
        """The phrases to query for a prompt, and the noun that each stands for."""
        nouns = (noun if self.coloured else Noun(shape=noun.shape, size=noun.size) for noun in prompt.nouns)
        return {self.phrase(noun): noun for noun in nouns}

    def sentence(self, phrase: str) -> str:
        return self.query.replace("{a}", article(phrase)).replace("{noun}", phrase)

    @property
    def identity(self) -> str:
        parts = [f"{self.query!r}", f"score {'>' if self.above else '>='} {self.threshold:g}"]
        parts += [f"({category}: {value:g})" for category, value in self.thresholds]
        parts += [f"NMS {self.nms:g}" if self.nms is not None else "no NMS"]
        return " ".join(parts)


@dataclass(frozen=True)
class Detection:
    label: str
    """The noun: a shape in rendered scenes, a class name or phrase from other detectors."""
    box: Box
    confidence: float
    """From 0 to 1."""
    colour: str | None = None
    """None: the detector does not read colours."""
    size: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A region that shows something the detector cannot name without guessing."""

    box: Box
    why: str


@dataclass(frozen=True)
class Detections:
    """Everything a detector reads from one image."""

    objects: tuple[Detection, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    clipped: int = 0
    """Boxes that reached past the image and were clipped to it."""
    outside: int = 0
    """Boxes entirely outside the image, which were dropped."""


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
