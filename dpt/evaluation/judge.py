"""Does a picture show what its prompt says? Counting only: objects that a detector read, facts that must hold."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.data.scenes.facts import Count, Fact, Noun, Related
from dpt.data.scenes.world import Box
from dpt.evaluation.detectors.base import Detection, Detections
from dpt.evaluation.suites.base import Prompt

READABLE = "everything readable"


@dataclass(frozen=True)
class Verdict:
    passed: bool
    atoms: tuple[tuple[str, bool], ...]
    """Each requirement in words, and whether it was met."""

    @property
    def reason(self) -> str:
        """The first requirement that was not met."""
        return next((atom for atom, met in self.atoms if not met), "")


@dataclass(frozen=True)
class _Seen:
    """A detection as a thing that facts can be about."""

    shape: str
    colour: str
    size: str
    box: Box


def judge(prompt: Prompt, seen: Detections) -> Verdict:
    things = [_thing(detection) for detection in seen.objects]
    atoms = [(READABLE, not seen.unreadable)]
    atoms += [(in_words(fact), fact.holds(things)) for fact in prompt.facts]
    if prompt.closed:
        asked = sum(fact.n for fact in prompt.facts if isinstance(fact, Count))
        atoms.append((f"{asked} objects in all", len(things) == asked))
    return Verdict(all(met for _, met in atoms), tuple(atoms))


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
