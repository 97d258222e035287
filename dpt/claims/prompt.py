"""A prompt of a suite: its text and the claims that a picture of it must meet."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.claims.facts import Claim, Noun, nouns_of


@dataclass(frozen=True)
class Prompt:
    id: str
    category: str
    text: str
    facts: tuple[Claim, ...]
    closed: bool = True
    """Whether objects that no fact counts are a fault."""
    unseen: bool = False
    """Whether it names a combination that is held out of training."""
    where: str = ""
    """File and line it comes from."""
    source: str = ""
    """The line itself, for layouts that store it beside the pictures."""

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """The nouns of its facts, without repeats, in order."""
        return tuple(dict.fromkeys(noun for fact in self.facts for noun in nouns_of(fact)))

    @property
    def origin(self) -> str:
        return self.where or f"prompt {self.id}"
