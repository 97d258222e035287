"""Prompt relabelling of IPR (arXiv 2312.16204): rewrite a prompt to what a detector read from its image.

The number of objects is tested first, then their colours, then their relation. An image that passes keeps its prompt.
Otherwise the new caption states what was detected. With the default options it holds for the same detections: judging
them by `RelabelledPrompt.prompt` passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Literal

from dpt.claims.facts import (
    RELATIONS,
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
    offset,
    overlap,
)
from dpt.claims.judge import DetectConfig, Detections, JudgedObject, judged_objects
from dpt.claims.words import OPPOSITE, Phrase, count_limit, detected_caption
from dpt.errors import UserError

Reason = Literal["number", "colour", "location"]
"""The test that decided: the first that failed, or the last that passed."""

REASONS: tuple[Reason, ...] = ("number", "colour", "location")

RelationClaim = Related | RelationByCentres | RelationOfBest

EMPTY, UNREADABLE, UNCOUNTABLE, DROPPED = (
    "nothing was detected",
    "an object is unreadable",
    "too many objects to put into words",
    "failures are dropped",
)
"""Why an image has no caption."""


@dataclass(frozen=True)
class RelabelConfig:
    failures: Literal["relabel", "keep", "drop"] = "relabel"
    """What becomes of an image that does not show its prompt: it gets a new caption, keeps the false one, or is left
    out."""
    relation_policy: Literal["dominant_axis", "opposite"] = "dominant_axis"
    """The relation of a new caption: the one that holds along the longer distance, or the opposite word (published),
    which is false where the objects lie along the other axis."""
    empty_policy: Literal["drop", "keep_zero", "describe"] = "drop"
    """An image without detections: left out, "0 cat" (published), or "an empty scene"."""
    counting: Literal["words", "digits"] = "words"
    """"two dogs and a cat", or "2 dog and 1 cat" (published)."""
    articles: Literal["a_an", "a"] = "a_an"
    """a or an, or always a (published)."""
    others_are_faults: bool = False
    """A detection of another noun makes the number wrong (published). A prompt that allows nothing else does so
    anyway."""
    tie_margin: float = 0.0
    """Pixels that the centres must differ by, for a relation to hold."""
    cross_class_nms: float | None = None
    """IoU above which the lower-scoring of two boxes is dropped, whatever their nouns."""

    def __post_init__(self) -> None:
        if not (isfinite(self.tie_margin) and self.tie_margin >= 0):
            raise UserError(f"--tie_margin must be a number of pixels from 0 up, not {self.tie_margin}")
        if self.cross_class_nms is not None and not 0 <= self.cross_class_nms <= 1:
            raise UserError(f"--cross_class_nms is an IoU between 0 and 1, not {self.cross_class_nms}")


TRUTHFUL = RelabelConfig()

PUBLISHED = RelabelConfig(
    relation_policy="opposite", empty_policy="keep_zero", counting="digits", articles="a", others_are_faults=True
)
"""The options of the published code."""


@dataclass(frozen=True)
class RelabelledPrompt:
    prompt: Prompt | None
    """The caption with its claims; None: the image has none, for the reason `skipped`."""
    correct: bool
    """Whether the image shows its original prompt."""
    reason: Reason
    skipped: str = ""

    @property
    def caption(self) -> str | None:
        return None if self.prompt is None else self.prompt.text


@dataclass(frozen=True)
class _Group:
    """The detections of one noun."""

    noun: Noun
    things: tuple[JudgedObject, ...]

    @property
    def single(self) -> bool:
        return len(self.things) == 1


def relabel(
    prompt: Prompt,
    detections: Detections,
    config: RelabelConfig = TRUTHFUL,
    detect_config: DetectConfig | None = None,
) -> RelabelledPrompt:
    """The caption for what was detected, and whether the prompt itself was met.

    A prompt is met if there are exactly as many objects as it names. `detect_config` is the query config of an
    open-vocabulary detector; None for a closed-set detector.
    """
    things = _without_duplicates(judged_objects(prompt, detections, detect_config), config.cross_class_nms)
    exact = replace(prompt, facts=tuple(_exact(claim) for claim in prompt.facts))
    reason = _first_fault(exact, things, config)
    unreadable = detect_config is None and bool(detections.unreadable)
    if reason is None and not unreadable:
        return RelabelledPrompt(prompt, True, _last_test(prompt))
    reason = reason or "number"
    if config.failures == "keep":
        return RelabelledPrompt(prompt, False, reason)
    if unreadable:
        return RelabelledPrompt(None, False, reason, UNREADABLE)
    if config.failures == "drop":
        return RelabelledPrompt(None, False, reason, DROPPED)
    return _relabelled(prompt, things, reason, config)


def _relabelled(
    prompt: Prompt, things: Sequence[JudgedObject], reason: Reason, config: RelabelConfig
) -> RelabelledPrompt:
    groups = _groups(prompt, things)
    if not groups:
        return _empty(prompt, reason, config)
    if max(len(group.things) for group in groups) > count_limit(prompt):
        return RelabelledPrompt(None, False, reason, UNCOUNTABLE)
    relation = _relation(prompt, groups, reason, config)
    absent = [claim for claim in prompt.facts if isinstance(claim, Absent) and claim.holds(things)]
    facts: list[Claim] = [Count(group.noun, len(group.things)) for group in groups]
    facts += [relation] if relation else []
    phrases = [Phrase(group.noun, len(group.things)) for group in groups]
    text = detected_caption(
        prompt,
        phrases,
        relation.relation if relation else None,
        [claim.noun for claim in absent],
        digits=config.counting == "digits",
        digits_for_one=reason == "number",
        an=config.articles == "a_an",
    )
    return RelabelledPrompt(replace(prompt, text=text, facts=(*facts, *absent)), False, reason)


def _empty(prompt: Prompt, reason: Reason, config: RelabelConfig) -> RelabelledPrompt:
    counted = [claim.noun for claim in prompt.facts if isinstance(claim, Count)]
    if config.empty_policy == "drop" or not counted:
        return RelabelledPrompt(None, False, reason, EMPTY)
    if config.empty_policy == "describe":
        nothing = replace(prompt, text="an empty scene", facts=tuple(Count(noun, 0) for noun in counted))
        return RelabelledPrompt(nothing, False, reason)
    last = counted[:2][-1]
    text = detected_caption(prompt, [Phrase(last, 0)], None, [], digits=True, digits_for_one=True, an=True)
    return RelabelledPrompt(replace(prompt, text=text, facts=(Count(last, 0),)), False, reason)


def _exact(claim: Claim) -> Claim:
    return replace(claim, exact=True) if isinstance(claim, Count) else claim


def _last_test(prompt: Prompt) -> Reason:
    if _relation_claim(prompt) is not None:
        return "location"
    return "colour" if any(noun.colour for noun in prompt.nouns) else "number"


def _first_fault(prompt: Prompt, things: Sequence[JudgedObject], config: RelabelConfig) -> Reason | None:
    counts = [claim for claim in prompt.facts if isinstance(claim, Count)]
    total = sum(claim.n for claim in counts)
    others = len(things) != total and (prompt.closed or (config.others_are_faults and bool(counts)))
    if others or not all(_number_holds(claim, counts, things) for claim in prompt.facts):
        return "number"
    coloured = [claim for claim in prompt.facts if isinstance(claim, Count | ColourOfBest)]
    if not all(claim.holds(things) for claim in coloured):
        return "colour"
    relations = [claim for claim in prompt.facts if isinstance(claim, RelationClaim)]
    return None if all(_relation_holds(claim, things, config.tie_margin) for claim in relations) else "location"


def _number_holds(claim: Claim, counts: Sequence[Count], things: Sequence[JudgedObject]) -> bool:
    """Whether a claim about numbers holds, colours left aside: a wrong colour is not a wrong number."""
    if isinstance(claim, Absent | FewerThan):
        return claim.holds(things)
    if not isinstance(claim, Count):
        return True
    named = [other for other in counts if _without_colour(other.noun) == _without_colour(claim.noun)]
    n = sum(other.n for other in named)
    return Count(_without_colour(claim.noun), n).holds(things)


def _without_colour(noun: Noun) -> Noun:
    return replace(noun, colour=None)


def _relation_claim(prompt: Prompt) -> RelationClaim | None:
    return next((claim for claim in prompt.facts if isinstance(claim, RelationClaim)), None)


def _relation_holds(claim: RelationClaim, things: Sequence[JudgedObject], tie_margin: float) -> bool:
    if not claim.holds(things):
        return False
    firsts, seconds = claim.first.among(things), claim.second.among(things)
    farthest = max((offset(a.box, b.box, claim.relation) for a in firsts for b in seconds), default=-inf)
    return farthest > tie_margin or not tie_margin


def _relation(prompt: Prompt, groups: Sequence[_Group], reason: Reason, config: RelabelConfig) -> RelationClaim | None:
    """The relation of the first two groups that the new caption states, if each is a single object."""
    claim = _relation_claim(prompt)
    if claim is None or len(groups) < 2 or not (groups[0].single and groups[1].single):
        return None
    first, second = groups[0].things[0], groups[1].things[0]
    renamed = replace(claim, first=groups[0].noun, second=groups[1].noun)
    if isinstance(renamed, RelationOfBest):
        renamed = replace(renamed, n_first=1, n_second=1)
    if config.relation_policy == "opposite":
        # As published: only a wrong location is corrected, by the opposite word of the same axis.
        return replace(renamed, relation=OPPOSITE[claim.relation]) if reason == "location" else None
    candidates = [claim.relation, *_by_distance(first.box, second.box)]
    stated = (replace(renamed, relation=relation) for relation in candidates)
    return next((c for c in stated if _relation_holds(c, (first, second), config.tie_margin)), None)


def _by_distance(first: Box, second: Box) -> list[str]:
    """The relations of two boxes by the distance of their centres along each, the longest first."""
    return sorted(RELATIONS, key=lambda relation: -offset(first, second, relation))


def _groups(prompt: Prompt, things: Sequence[JudgedObject]) -> list[_Group]:
    """The detections by noun, in the order of the prompt's nouns that they stand for.

    A prompt that allows other objects speaks of its own nouns only. Colours and sizes are stated where it states them.
    """
    named = _named_nouns(prompt)
    relevant = [
        thing for thing in things if prompt.closed or any(noun.shape in (None, thing.shape) for noun in prompt.nouns)
    ]
    nouns = [_noun_of(thing, prompt) for thing in relevant]
    kinds = Counter(nouns)

    def position(noun: Noun) -> tuple[int, int, str]:
        free = [other for other in named if other not in kinds]
        likeness = (
            [other for other in named if other == noun],
            [other for other in free if other.shape == noun.shape],
            [other for other in free if other.colour == noun.colour],
        )
        for rank, alike in enumerate(likeness):
            if alike:
                return named.index(alike[0]), rank, str(noun)
        return len(named), 0, str(noun)

    return [
        _Group(noun, tuple(thing for thing, own in zip(relevant, nouns, strict=True) if own == noun))
        for noun in sorted(kinds, key=position)
    ]


def _named_nouns(prompt: Prompt) -> list[Noun]:
    """The nouns that the prompt says are there: those of its relation first, in the order of the sentence."""
    claim = _relation_claim(prompt)
    pair = [claim.first, claim.second] if claim else []
    counted = [claim.noun for claim in prompt.facts if isinstance(claim, Count | ColourOfBest)]
    coloured = {claim.noun.shape: claim.noun for claim in prompt.facts if isinstance(claim, ColourOfBest)}
    return list(dict.fromkeys(coloured.get(noun.shape, noun) for noun in [*pair, *counted]))


def _noun_of(thing: JudgedObject, prompt: Prompt) -> Noun:
    def stated(attribute: str) -> bool:
        return any(
            getattr(noun, attribute) and (prompt.closed or noun.shape in (None, thing.shape)) for noun in prompt.nouns
        )

    colour = thing.colour if thing.colour and stated("colour") else None
    size = thing.size if thing.size and stated("size") else None
    return Noun(colour, thing.shape, size)


def _without_duplicates(things: Sequence[JudgedObject], iou: float | None) -> list[JudgedObject]:
    if iou is None:
        return list(things)
    kept: list[JudgedObject] = []
    for thing in sorted(things, key=lambda thing: -thing.confidence):
        if all(overlap(thing.box, better.box) <= iou for better in kept):
            kept.append(thing)
    return kept
