"""A prompt is its text and what must be so in a picture of it; a suite is prompts and how they are judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from dpt.data.scenes.facts import Noun
from dpt.errors import UserError
from dpt.evaluation.suites.claims import Claim, nouns_of
from dpt.evaluation.suites.words import article

Layout = Literal["flat", "folders"]


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


@dataclass(frozen=True)
class Asking:
    """How a detector that must be told is asked, and what of its answer counts. Others are not affected."""

    query: str
    """{noun} stands for the noun, {a} for its article."""
    threshold: float
    above: bool = False
    """Whether a score must lie above the threshold; otherwise it may also lie at it."""
    thresholds: tuple[tuple[str, float], ...] = ()
    """Other thresholds, of single categories."""
    nms: float | None = None
    """Of two boxes of one noun that share more of their union than this, the better one counts."""
    colours: tuple[str, ...] = ()
    """Out of which the colour of a box is named. None: a noun's colour is part of the query ("red car")."""

    @property
    def coloured(self) -> bool:
        return not self.colours

    @property
    def lowest(self) -> float:
        return min([self.threshold, *(value for _, value in self.thresholds)])

    def counts(self, score: float, category: str | None = None) -> bool:
        """Of no category: whether it counts in some category."""
        least = self.lowest if category is None else dict(self.thresholds).get(category, self.threshold)
        return score > least if self.above else score >= least

    def phrase(self, noun: Noun) -> str:
        parts = (noun.size, noun.colour if self.coloured else None, noun.shape)
        return " ".join(part for part in parts if part)

    def phrases(self, prompt: Prompt) -> dict[str, Noun]:
        """What to ask for in a picture of the prompt, and the noun that each phrase stands for."""
        asked = (noun if self.coloured else Noun(shape=noun.shape, size=noun.size) for noun in prompt.nouns)
        return {self.phrase(noun): noun for noun in asked}

    def sentence(self, phrase: str) -> str:
        return self.query.replace("{a}", article(phrase)).replace("{noun}", phrase)

    @property
    def identity(self) -> str:
        parts = [f"{self.query!r}", f"score {'>' if self.above else '>='} {self.threshold:g}"]
        parts += [f"({category}: {value:g})" for category, value in self.thresholds]
        parts += [f"NMS {self.nms:g}" if self.nms is not None else "no NMS"]
        return " ".join(parts)


@dataclass(frozen=True)
class Suite:
    name: str
    id: str
    """With its version; the noise of every picture is drawn from it."""
    prompts: tuple[Prompt, ...]
    asking: Asking | None
    """None: its pictures are not judged."""
    judge: str = ""
    """The name its verdicts go by, where that is not the suite's."""
    layout: Layout = "flat"
    detector: str | None = None
    """What judges it when nothing else is said."""

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.category for prompt in self.prompts))

    @property
    def needs_colours(self) -> bool:
        return any(noun.colour for prompt in self.prompts for noun in prompt.nouns)

    @property
    def hash(self) -> str:
        """SHA-256 of every prompt with its facts, and of the rules of asking."""
        digest = hashlib.sha256(self.id.encode())
        for prompt in self.prompts:
            told = [prompt.id, prompt.category, prompt.text, [[type(f).__name__, asdict(f)] for f in prompt.facts]]
            digest.update(json.dumps(told).encode())
        digest.update(json.dumps(asdict(self.asking) if self.asking else None).encode())
        return digest.hexdigest()


def picture_file(layout: Layout, prompt_id: str, index: int) -> Path:
    """Where, in a method's folder, a picture lies."""
    if layout == "folders":
        return Path(prompt_id) / "samples" / f"{index:04d}.png"
    return Path(f"{prompt_id}-{index}.png")


def check_classes(prompts: Iterable[Prompt], classes: tuple[str, ...] | None, detector: str) -> None:
    """A detector that knows only its own world cannot judge a prompt about something else."""
    if classes is None:
        return
    for prompt in prompts:
        for noun in prompt.nouns:
            if noun.shape is not None and noun.shape not in classes:
                known = ", ".join(classes)
                raise UserError(f"{prompt.origin}: {detector} does not know {noun.shape!r}; it knows {known}")
