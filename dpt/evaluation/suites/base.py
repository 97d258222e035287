"""A prompt is its text and what must be so in a picture of it."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.data.scenes.facts import Fact


@dataclass(frozen=True)
class Prompt:
    id: str
    category: str
    text: str
    facts: tuple[Fact, ...]
    closed: bool = True
    """Whether the picture may show nothing beside what the facts count."""
    unseen: bool = False
    """Whether it names a combination that no training caption ever said."""
