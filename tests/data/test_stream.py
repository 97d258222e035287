from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpt.data.example import ALL_PARTS, Example, ExampleImage, ExampleParts, Source
from dpt.data.images import Framing
from dpt.data.scenes.source import SceneSource
from dpt.data.scenes.world import POCKET_WORLD
from dpt.data.stream import CorruptBudget, Stream, load
from dpt.errors import BrokenImageError, DataError


class SomeBroken(Source):
    """Examples called by their index and epoch; the given ones cannot be had."""

    def __init__(self, n: int, broken: set[int]) -> None:
        self.n, self.broken = n, broken

    def __len__(self) -> int:
        return self.n

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        if index in self.broken:
            raise BrokenImageError.of(Path(f"{index}.jpg"), "it is cut")
        return Example(f"{index} in {epoch}", ExampleImage("", torch.zeros(3, 2, 2)))


def ids(stream: Stream, positions: range) -> list[str]:
    return [stream[position].id for position in positions]


def test_each_epoch_shows_everything_once_in_an_order_of_its_own() -> None:
    stream = Stream(SomeBroken(10, set()), seed=4)
    first, second = ids(stream, range(10)), ids(stream, range(10, 20))
    assert sorted(first) == [f"{i} in 0" for i in range(10)]
    assert sorted(second) == [f"{i} in 1" for i in range(10)]
    assert [one[0] for one in first] != [one[0] for one in second]


def test_validation_is_in_order_and_the_same_each_time() -> None:
    stream = Stream(SomeBroken(5, set()), seed=4, shuffle=False)
    assert ids(stream, range(5)) == ids(stream, range(5, 10)) == [f"{i} in 0" for i in range(5)]


def test_without_a_budget_a_broken_picture_is_an_error() -> None:
    with pytest.raises(BrokenImageError, match=r"2\.jpg cannot be used: it is cut"):
        ids(Stream(SomeBroken(5, {2}), seed=0), range(5))


def test_within_the_budget_another_example_stands_in_always_the_same() -> None:
    stream, again = (Stream(SomeBroken(6, {2, 5}), seed=0, corrupt_budget=2) for _ in range(2))
    seen = [stream[position] for position in range(60)]
    assert [again[position].id for position in reversed(range(60))] == [one.id for one in seen][::-1]
    assert {one.id[0] for one in seen} == {"0", "1", "3", "4"}
    assert sum(bool(one.skipped) for one in seen) == 20
    untouched = Stream(SomeBroken(6, set()), seed=0)
    assert all(one.id == untouched[position].id for position, one in enumerate(seen) if not one.skipped)


def test_a_source_that_is_all_broken_ends() -> None:
    with pytest.raises(DataError, match="16 examples in a row"):
        Stream(SomeBroken(3, {0, 1, 2}), seed=0, corrupt_budget=100)[0]


def test_the_budget_counts_each_picture_once_and_warns_of_it() -> None:
    budget = CorruptBudget(2)
    with pytest.warns(UserWarning, match=r"a is cut \(1 of 2 allowed\)"):
        budget.note(["a is cut", "a is cut"])
    with pytest.warns(UserWarning, match="b is cut"):
        budget.note(["b is cut", "a is cut"])
    with pytest.warns(UserWarning), pytest.raises(DataError, match="more than 2 images are broken; c is cut"):
        budget.note(["c is cut"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_who_makes_them(workers: int) -> None:
    stream = Stream(SceneSource(POCKET_WORLD, 0, "train", Framing(64, random_flip=True), size=50), seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(load(stream, [[3, 4], [60, 1], [7]], workers))
    assert torch.equal(before, torch.get_rng_state())
    assert [batch.ids for batch in batches] == [[stream[p].id for p in ps] for ps in ([3, 4], [60, 1], [7])]
    assert torch.equal(batches[1].images[0], stream[60].image.values)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_comes_out_of_the_workers_as_one_sentence(workers: int) -> None:
    with pytest.raises(DataError, match=r"^the image 2\.jpg cannot be used: it is cut$"):
        list(load(Stream(SomeBroken(5, {2}), 0), [[0, 1], [2, 3, 4]], workers))


def test_more_broken_pictures_than_allowed_stop_the_batches() -> None:
    stream = Stream(SomeBroken(9, {1, 2, 3}), seed=0, corrupt_budget=2)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="more than 2 images are broken"):
        list(load(stream, [[i] for i in range(9)]))
    allowed = Stream(SomeBroken(9, {1, 2}), seed=0, corrupt_budget=2)
    with pytest.warns(UserWarning):
        assert [len(batch) for batch in load(allowed, [[0, 1, 2, 3, 4, 5, 6, 7, 8]])] == [9]
