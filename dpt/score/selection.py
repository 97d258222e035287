"""Clear winners and clear losers among the images of each prompt, by their preference scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dpt.data.preference.tuning import NEGATIVE, POSITIVE
from dpt.errors import UserError


@dataclass(frozen=True)
class ScoredPicture:
    """A line of the scores file."""

    id: int
    prompt: str
    score: float
    """100 * cosine."""
    blurry: bool = False
    file_name: str = ""


@dataclass(frozen=True)
class SelectionConfig:
    """An image is selected if its share of the softmax of its group exceeds `factor` / n."""

    temperature: float = 1.0
    """The scores, 100 times a cosine, are divided by it before the softmax."""
    min_pictures: int = 4
    """Smaller groups are left out. Blurry images do not count."""
    factor: float = 2.0

    def __post_init__(self) -> None:
        if not 1e-6 <= self.temperature < math.inf:
            raise UserError(f"--temperature must be positive, not {self.temperature}")
        if self.min_pictures < 2:
            raise UserError(f"--min_pictures must be at least 2, not {self.min_pictures}")
        if not self.factor > 0:
            raise UserError(f"--factor must be positive, not {self.factor}")


@dataclass(frozen=True)
class SelectedPicture:
    picture: ScoredPicture
    type: Literal["positive", "negative"]
    confidence: float
    """Its share of the softmax; for a negative, of the softmax of the negated scores."""
    batch_size: int
    """Images in its group."""


def softmax(values: Sequence[float]) -> list[float]:
    """The largest value is subtracted, so that no scale overflows."""
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def select(pictures: Iterable[ScoredPicture], config: SelectionConfig | None = None) -> list[SelectedPicture]:
    """At most one positive and one negative for each prompt, in the order of their ids.

    Groups are formed by the exact prompt. Ties go to the smallest id. The order of the images does not matter.
    """
    config = config or SelectionConfig()
    groups: dict[str, list[ScoredPicture]] = {}
    for picture in sorted(pictures, key=lambda picture: picture.id):
        if not picture.blurry:
            groups.setdefault(picture.prompt, []).append(picture)
    selected = [chosen for group in groups.values() for chosen in _select_of_group(group, config)]
    return sorted(selected, key=lambda chosen: (chosen.picture.id, chosen.type))


def _select_of_group(group: Sequence[ScoredPicture], config: SelectionConfig) -> Iterable[SelectedPicture]:
    n = len(group)
    if n < config.min_pictures:
        return
    scores = [picture.score / config.temperature for picture in group]
    for kind, signed in ((POSITIVE, scores), (NEGATIVE, [-score for score in scores])):
        shares = softmax(signed)
        best = shares.index(max(shares))
        if shares[best] > config.factor / n:
            yield SelectedPicture(group[best], kind, shares[best], n)  # type: ignore[arg-type]
