"""Captions that differ from a prompt in one fact: what a judge without a detector chooses from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpt.claims.boxes import RELATIONS
from dpt.claims.captions import Phrase, detected_caption
from dpt.claims.facts import Absent, Count, Noun, Prompt, Related, RelationByCentres, RelationOfBest
from dpt.claims.relabel import Reason

MAX_COUNT = 4
"""The largest number of an alternative; the prompt's own may be larger."""


@dataclass(frozen=True)
class Alternative:
    """A caption, and the test that an image fails if this caption fits it better than its prompt."""

    text: str
    reason: Reason


def alternatives(prompt: Prompt) -> tuple[Alternative, ...]:
    """Other relations; colours exchanged; one of two objects missing; other numbers of a single noun."""
    counts = [claim for claim in prompt.facts if isinstance(claim, Count)]
    phrases = [Phrase(claim.noun, claim.n) for claim in counts]
    relation = next((c for c in prompt.facts if isinstance(c, Related | RelationByCentres | RelationOfBest)), None)
    found: list[Alternative] = []

    def add(reason: Reason, changed: list[Phrase], stated: str | None, absent: list[Noun]) -> None:
        text = detected_caption(prompt, changed, stated, absent, digits=False, digits_for_one=False, an=True)
        found.append(Alternative(text, reason))

    lacking = [claim.noun for claim in prompt.facts if isinstance(claim, Absent)]
    stated = relation.relation if relation is not None and len(phrases) > 1 else None
    if relation is not None and stated is not None:
        pair = [relation.first, relation.second]
        phrases.sort(key=lambda phrase: pair.index(phrase.noun) if phrase.noun in pair else len(pair))
        for other in RELATIONS:
            if other != stated:
                add("location", phrases, other, lacking)
    if len(phrases) > 1 and phrases[0].noun.colour != phrases[1].noun.colour:
        first, second = phrases[:2]
        swapped = [
            replace(first, noun=replace(first.noun, colour=second.noun.colour)),
            replace(second, noun=replace(second.noun, colour=first.noun.colour)),
        ]
        add("colour", [*swapped, *phrases[2:]], stated, lacking)
    if len(phrases) == 2:
        for phrase in phrases:
            add("number", [phrase], None, lacking)
    if len(phrases) == 1:
        for n in range(1, MAX_COUNT + 1):
            if n != phrases[0].n:
                add("number", [replace(phrases[0], n=n)], None, lacking)
    if lacking and phrases:
        add("number", [*phrases, *(Phrase(noun, 1) for noun in lacking)], None, [])
    return tuple(dict.fromkeys(found))
