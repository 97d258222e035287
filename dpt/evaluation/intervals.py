"""Counted shares and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054


def wilson(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share: honest near 0 and 1, where the oracle's accuracies are."""
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} hits of {total} is not a share")
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    spread = z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / total + spread / (4 * total))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == total else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Share:
    """In percent when shown, with its 95 % interval."""

    hits: int
    total: int

    def __str__(self) -> str:
        if self.total == 0:
            return "-"
        low, high = wilson(self.hits, self.total)
        return f"{self.percent:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.total
