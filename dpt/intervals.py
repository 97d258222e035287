"""Proportions and means with 95 % confidence intervals: Wilson for counts, the bootstrap for means over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Bounds = tuple[float, float]

PROPORTION: Bounds = (0.0, 1.0)

DIFFERENCE: Bounds = (-1.0, 1.0)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    from scipy.stats import binomtest

    if not 0 <= hits <= total:
        raise ValueError(f"{hits} hits of {total} is not a proportion")
    if total == 0:
        return 0.0, 1.0
    interval = binomtest(hits, total).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Share:
    """A proportion, shown in percent with its Wilson interval."""

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


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, if it has one."""

    value: float
    low: float | None
    high: float | None

    @property
    def percent(self) -> str:
        return self._format("{:.1f}")

    @property
    def signed(self) -> str:
        return self._format("{:+.1f}")

    @property
    def plain(self) -> str:
        """Without the factor of 100."""
        return self._format("{:.3f}", 1)

    @property
    def plain_signed(self) -> str:
        return self._format("{:+.3f}", 1)

    def _format(self, template: str, factor: float = 100) -> str:
        value = template.format(factor * self.value)
        if self.low is None or self.high is None:
            return value
        return f"{value} ({template.format(factor * self.low)} to {template.format(factor * self.high)})"


RESAMPLES = 10_000

LARGEST_COUNTS = 1000
"""Prompts up to which resamples are drawn prompt by prompt; above, by distinct value, which has the same distribution
and costs far less."""

MOST_DISTINCT = 1000
"""Distinct values up to which they are resampled; above, the central limit theorem gives the interval."""


def bootstrap(
    strata: Sequence[npt.ArrayLike], bounds: Bounds | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of the strata's means, resampled within each stratum; all strata weigh the same.

    A value belongs to a prompt, since the pictures of one prompt are not independent. Where all strata are constant
    a resample has no spread: for values within `bounds` the interval is then the Wilson-type one of
    `_constant_interval`, otherwise there is none.
    """
    arrays = [np.asarray(values, dtype=float) for values in strata]
    if not arrays or not all(len(values) for values in arrays):
        raise ValueError("nothing can be estimated from no values")
    value = float(np.mean([values.mean() for values in arrays]))
    if all(np.ptp(values) == 0 for values in arrays):
        return Estimate(value, *_constant_interval([(float(values[0]), len(values)) for values in arrays], bounds))
    if max(map(len, arrays)) <= LARGEST_COUNTS:
        all_counts = _resample_counts(tuple(map(len, arrays)), resamples, seed)
        parts = (counts @ values / len(values) for counts, values in zip(all_counts, arrays, strict=True))
    else:
        rng = np.random.default_rng(seed)
        parts = (_resampled_means(values, resamples, rng) for values in arrays)
    means = np.zeros(resamples)
    for part in parts:
        means += part / len(arrays)
    return Estimate(value, *_quantiles(means))


def bootstrap_ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The sum of parts over the sum of wholes, resampled together; 0 if the wholes are all 0. parts <= wholes."""
    part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    if not len(part):
        raise ValueError("nothing can be estimated from no values")
    value = float(_ratio(part.sum(), whole.sum()))
    if len(np.unique(_ratio(part, whole)[whole > 0])) <= 1:
        return Estimate(value, *_constant_interval([(value, int(np.count_nonzero(whole)))], PROPORTION))
    pairs, frequency = np.unique(np.stack([part, whole], 1), axis=0, return_counts=True)
    if len(part) <= LARGEST_COUNTS or len(pairs) > MOST_DISTINCT:
        pairs, frequency = np.stack([part, whole], 1), np.ones(len(part), int)
    rng = np.random.default_rng(seed)
    sums = _sums(lambda size: rng.multinomial(len(part), frequency / len(part), size=size), pairs, resamples)
    return Estimate(value, *_quantiles(_ratio(sums[:, 0], sums[:, 1])))


@lru_cache(maxsize=8)
def _resample_counts(sizes: tuple[int, ...], resamples: int, seed: int) -> list[npt.NDArray[np.int16]]:
    """How often each value of each stratum is drawn, (resamples, size) per stratum."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.int16) for n in sizes]


def _resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    distinct, frequency = np.unique(values, return_counts=True)
    if len(distinct) > MOST_DISTINCT:
        return rng.normal(values.mean(), values.std() / sqrt(len(values)), resamples)
    sums = _sums(
        lambda size: rng.multinomial(len(values), frequency / len(values), size=size), distinct[:, None], resamples
    )
    means: Floats = sums[:, 0] / len(values)
    return means


def _sums(draw: Callable[[int], npt.NDArray[np.int64]], columns: Floats, resamples: int) -> Floats:
    """(resamples, columns): `draw(n)` gives n rows of counts. In blocks, so that memory does not grow with prompts."""
    block = max(1, 2_000_000 // len(columns))
    return np.concatenate([draw(min(block, resamples - at)) @ columns for at in range(0, resamples, block)])


def _constant_interval(strata: Sequence[tuple[float, int]], bounds: Bounds | None) -> tuple[float | None, float | None]:
    """Of strata of n equal values each, given as (value, n).

    Of n equal values, the share that differs in the population is at most the Wilson bound of 0 out of n; those may
    differ as far as `bounds` allow. For values of 0 or 1 this is the Wilson interval itself. Strata are combined by
    the squares of their half widths.
    """
    if bounds is None:
        return None, None
    lowest, highest = bounds
    value = sum(constant for constant, _ in strata) / len(strata)
    below = above = 0.0
    for constant, n in strata:
        _, differing = wilson(0, n)
        below += (differing * (constant - lowest)) ** 2
        above += (differing * (highest - constant)) ** 2
    return value - sqrt(below) / len(strata), value + sqrt(above) / len(strata)


def _quantiles(means: Floats) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
