import numpy as np
import pytest

from dpt.intervals import bootstrap, wilson


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
def test_known_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("hits", "total"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson(hits, total)


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        found = bootstrap([chance.random(60) < 0.7, chance.random(60) < 0.3], resamples=500)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert 180 <= inside <= 198


def test_a_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap([[], [1.0]])
