"""Wilson and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from dpt.intervals import DIFFERENCE, PROPORTION, bootstrap, bootstrap_ratio, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27754),  # the last two: Newcombe (1998), table I
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72246, 1.0),
        (81, 263, 0.25524, 0.36619),
        (15, 148, 0.06237, 0.16051),
    ],
)
def test_wilson_gives_the_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_zero_trials_is_full_and_invalid_counts_are_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    for hits, total in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="not a proportion"):
            wilson(hits, total)


def test_bootstrap_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        estimate = bootstrap([rng.random(60) < 0.7, rng.random(60) < 0.3], resamples=500)
        assert estimate.low is not None and estimate.high is not None
        inside += estimate.low <= 0.5 <= estimate.high
    assert 180 <= inside <= 198


def test_bootstrap_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([[], [1.0]])
    with pytest.raises(ValueError, match="no values"):
        bootstrap_ratio([], [])


def test_intervals_reproduce_the_committed_results() -> None:
    """Resampling prompt by prompt from generator 0: what docs/results was computed with."""
    values = (np.arange(300) % 4 < 3) * 0.5
    counts = np.random.default_rng(0).multinomial(300, np.full(300, 1 / 300), size=10_000)
    low, high = np.quantile(counts @ values / 300, [0.025, 0.975])
    estimate = bootstrap([values], PROPORTION)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("hits", "total"), [(60, 60), (0, 60), (1, 1), (0, 1)])
def test_rates_of_zero_and_one_have_the_wilson_interval(hits: int, total: int) -> None:
    estimate = bootstrap([np.full(total, float(hits > 0))], PROPORTION)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(hits, total), abs=1e-12)
    assert bootstrap([np.ones(60)], PROPORTION).percent == "100.0 (94.0 to 100.0)"


def test_equal_values_have_a_positive_interval() -> None:
    half = bootstrap([[0.5]], PROPORTION)
    assert half.low is not None and half.high is not None and half.low < 0.2 and half.high > 0.8
    same = bootstrap([np.zeros(300)], DIFFERENCE)
    assert same.signed == "+0.0 (-1.3 to +1.3)"
    assert (bootstrap([[0.3]]).low, bootstrap([[0.3]]).high) == (None, None)  # unbounded: no interval from one value
    together = bootstrap([np.ones(60)] * 5, PROPORTION)
    assert together.low is not None and wilson(60, 60)[0] < together.low < 1 == together.high


def test_large_samples_have_the_interval_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(2)
    rates, scores = rng.integers(0, 5, 3000) / 4, rng.normal(0.3, 0.1, 3000)
    counts = rng.multinomial(3000, np.full(3000, 1 / 3000), size=2000)
    for values in (rates, scores):
        estimate = bootstrap([values])
        expected = np.quantile(counts @ values / 3000, [0.025, 0.975])
        width = expected[1] - expected[0]
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.06 * width)


def test_ratio_is_resampled_with_its_denominator() -> None:
    estimate = bootstrap_ratio([1, 0, 3], [2, 4, 6])
    assert estimate.value == pytest.approx(1 / 3) and estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low < 1 / 3 < estimate.high <= 0.5
    constant = bootstrap_ratio([1, 2, 3], [2, 4, 6])
    assert constant.value == 0.5 and constant.low is not None and constant.low < 0.4
    nothing = bootstrap_ratio([0, 0], [0, 0])
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 1)
    rng = np.random.default_rng(0)
    wholes = rng.integers(0, 5, 5000) / 4
    large, small = (bootstrap_ratio(wholes[:n] * (np.arange(n) % 2), wholes[:n]) for n in (5000, 900))
    assert large.value == pytest.approx(0.5, abs=0.02) and large.low is not None and small.low is not None
    assert large.value - large.low < small.value - small.low
