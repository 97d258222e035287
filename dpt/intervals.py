"""Counted shares and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

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


RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, where there is one."""

    value: float
    low: float | None
    high: float | None

    @property
    def percent(self) -> str:
        return self._shown("{:.1f}")

    @property
    def signed(self) -> str:
        return self._shown("{:+.1f}")

    @property
    def plain(self) -> str:
        """Not in percent."""
        return self._shown("{:.3f}", 1)

    @property
    def plain_signed(self) -> str:
        return self._shown("{:+.3f}", 1)

    def _shown(self, form: str, times: float = 100) -> str:
        value = form.format(times * self.value)
        if self.low is None or self.high is None:
            return value
        return f"{value} ({form.format(times * self.low)} to {form.format(times * self.high)})"


def bootstrap(strata: Sequence[npt.ArrayLike], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of the strata's means, each stratum with the same weight and resampled by itself.

    A value is what is drawn independently: a prompt, not one of its pictures, which are alike.
    """
    chance = np.random.default_rng(seed)
    arrays = [np.asarray(values, dtype=float) for values in strata]
    if not arrays or not all(len(values) for values in arrays):
        raise ValueError("nothing can be estimated from no values")
    means = np.zeros(resamples)
    for values in arrays:
        # How often each value is drawn: as good as drawing them, and no table of resamples x values of floats.
        counts = chance.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
        means += counts @ values / len(values) / len(arrays)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(np.mean([values.mean() for values in arrays])), float(low), float(high))


def bootstrap_ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The sum of the parts over that of the wholes, resampled together; 0 where there is no whole."""
    part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if not len(part):
        raise ValueError("nothing can be estimated from no values")
    chance = np.random.default_rng(seed)
    counts = chance.multinomial(len(part), np.full(len(part), 1 / len(part)), size=resamples)
    low, high = np.quantile(_ratio(counts @ part, counts @ whole), [0.025, 0.975])
    return Estimate(float(_ratio(part.sum(), whole.sum())), float(low), float(high))


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=whole > 0)
