"""What a detector found in a picture, and the rules by which it is queried and its boxes count."""

from __future__ import annotations

from dataclasses import dataclass

from dpt.claims.boxes import Box
from dpt.claims.facts import Noun
from dpt.claims.prompt import Prompt
from dpt.claims.words import article


@dataclass(frozen=True)
class DetectConfig:
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
class Detection:
    label: str
    """The noun: a shape in this house's worlds, a class name from a zero-shot detector."""
    box: Box
    confidence: float
    """From 0 to 1."""
    colour: str | None = None
    """None: this detector does not tell."""
    size: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """A region that shows something, but nothing that can be named without guessing."""

    box: Box
    why: str


@dataclass(frozen=True)
class Detections:
    """All that was seen in one image."""

    objects: tuple[Detection, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    clipped: int = 0
    """Boxes that reached past the picture and were cut to it."""
    outside: int = 0
    """Boxes with nothing of the picture in them: taken off, since they show no object of it."""
