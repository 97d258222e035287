"""Does a picture show what its prompt says? Counting only: objects that a detector read, facts that must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dpt.data.scenes.facts import Count, Fact, Noun, Related, Thing
from dpt.evaluation.suites.base import Prompt


@dataclass(frozen=True)
class Verdict:
    passed: bool
    atoms: tuple[tuple[str, bool], ...]
    """Each requirement in words, and whether it was met."""

    @property
    def reason(self) -> str:
        """The first requirement that was not met."""
        return next((atom for atom, met in self.atoms if not met), "")


def judge(prompt: Prompt, things: Sequence[Thing], unreadable: int = 0) -> Verdict:
    atoms = [("everything readable", unreadable == 0)]
    atoms += [(describe_fact(fact), fact.holds(things)) for fact in prompt.facts]
    if prompt.closed:
        asked = sum(fact.n for fact in prompt.facts if isinstance(fact, Count))
        atoms.append((f"{asked} objects in all", len(things) == asked))
    return Verdict(all(met for _, met in atoms), tuple(atoms))


def describe_fact(fact: Fact) -> str:
    if isinstance(fact, Count):
        return f"{'' if fact.exact else 'at least '}{fact.n} x {_noun_words(fact.noun)}"
    if isinstance(fact, Related):
        return f"{_noun_words(fact.first)} {fact.relation} {_noun_words(fact.second)}"
    return f"no {_noun_words(fact.noun)}"


def _noun_words(noun: Noun) -> str:
    words = (noun.size, noun.colour, noun.shape)
    return " ".join(word for word in words if word) or "object"
