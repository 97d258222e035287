"""A prompt: its text, and what must be true of a picture of it."""

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
    """Whether the picture may show nothing beside what the facts count."""
    unseen: bool = False
    """Whether it names a combination that no training caption ever said."""
    where: str = ""
    """File and line it was read from."""
    source: str = ""
    """The line itself, for the layouts that keep it beside the pictures."""

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """All that its facts are about, each once, in their order."""
        return tuple(dict.fromkeys(noun for fact in self.facts for noun in nouns_of(fact)))

    @property
    def origin(self) -> str:
        return self.where or f"prompt {self.id}"
