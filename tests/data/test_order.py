from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpt.data.stream import epoch_of, shuffled_index


def epoch(seed: int, nth: int, length: int) -> list[int]:
    return [shuffled_index(seed, nth * length + i, length) for i in range(length)]


@given(st.integers(-9, 10**6), st.integers(0, 10**6), st.integers(1, 70))
def test_every_epoch_is_a_permutation(seed: int, nth: int, length: int) -> None:
    assert sorted(epoch(seed, nth, length)) == list(range(length))
    assert epoch_of(nth * length + length - 1, length) == nth


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [epoch(seed, nth, 40) for seed in range(3) for nth in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(40)) not in orders


def test_every_item_reaches_every_position() -> None:
    """400 epochs of 8: each of the 64 cells is expected 50 times, with a deviation of 6.6."""
    counts = [[0] * 8 for _ in range(8)]
    for nth in range(400):
        for place, item in enumerate(epoch(1, nth, 8)):
            counts[place][item] += 1
    assert all(20 < n < 80 for row in counts for n in row)


def test_neighbours_are_separated_in_a_long_source() -> None:
    order = [shuffled_index(0, i, 10_000_000) for i in range(2000)]
    assert len(set(order)) == 2000
    assert 4_700_000 < sum(order) / 2000 < 5_300_000
    assert sum(abs(a - b) < 1000 for a, b in pairwise(order)) < 5


def test_order_is_stable_across_versions() -> None:
    """A resumed run must see the order of the version that started it."""
    assert epoch(0, 0, 10) == [9, 3, 6, 8, 1, 4, 7, 5, 2, 0]


@pytest.mark.parametrize(("position", "length"), [(0, 0), (-1, 5)])
def test_position_out_of_range_is_refused(position: int, length: int) -> None:
    with pytest.raises(ValueError, match="no position"):
        shuffled_index(0, position, length)
