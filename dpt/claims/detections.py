"""What a detector reads from an image, and how it is queried."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.claims.boxes import Box
from dpt.claims.facts import Noun, Prompt
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
