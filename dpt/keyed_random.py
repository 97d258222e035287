"""Random choices that are a function of a key, never of history."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class KeyedRandom:
    """A stream of choices keyed by e.g. (seed, index, "captions").

    Built only on `random.Random.random`, whose sequence Python promises to keep between versions.
    """

    def __init__(self, *key: object) -> None:
        self._random = random.Random(":".join(str(part) for part in key)).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def randrange(self, n: int) -> int:
        return int(self._random() * n)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.randrange(len(items))]

    def weighted_choice(self, weighted: Sequence[tuple[T, float]]) -> T:
        at = self._random() * sum(weight for _, weight in weighted)
        for item, weight in weighted:
            at -= weight
            if at < 0:
                return item
        return weighted[-1][0]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """n different items, in random order."""
        left = list(items)
        return [left.pop(self.randrange(len(left))) for _ in range(n)]
