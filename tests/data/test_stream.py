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
    """Examples named by index and epoch; those in `broken` cannot be read."""

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


def test_each_epoch_covers_everything_once_in_a_new_order() -> None:
    stream = Stream(SomeBroken(10, set()), seed=4)
    first, second = ids(stream, range(10)), ids(stream, range(10, 20))
    assert sorted(first) == [f"{i} in 0" for i in range(10)]
    assert sorted(second) == [f"{i} in 1" for i in range(10)]
    assert [example_id[0] for example_id in first] != [example_id[0] for example_id in second]


def test_validation_order_is_fixed() -> None:
    stream = Stream(SomeBroken(5, set()), seed=4, shuffle=False)
    assert ids(stream, range(5)) == ids(stream, range(5, 10)) == [f"{i} in 0" for i in range(5)]


def test_broken_image_without_budget_is_an_error() -> None:
    with pytest.raises(BrokenImageError, match=r"2\.jpg cannot be used: it is cut"):
        ids(Stream(SomeBroken(5, {2}), seed=0), range(5))


def test_broken_image_within_budget_is_replaced_deterministically() -> None:
    stream, again = (Stream(SomeBroken(6, {2, 5}), seed=0, corrupt_budget=2) for _ in range(2))
    examples = [stream[position] for position in range(60)]
    assert [again[position].id for position in reversed(range(60))] == [example.id for example in examples][::-1]
    assert {example.id[0] for example in examples} == {"0", "1", "3", "4"}
    assert sum(bool(example.skipped) for example in examples) == 20
    intact = Stream(SomeBroken(6, set()), seed=0)
    assert all(example.id == intact[position].id for position, example in enumerate(examples) if not example.skipped)


def test_source_with_only_broken_images_is_an_error() -> None:
    with pytest.raises(DataError, match="16 examples in a row"):
        Stream(SomeBroken(3, {0, 1, 2}), seed=0, corrupt_budget=100)[0]


def test_budget_counts_each_image_once_and_warns() -> None:
    budget = CorruptBudget(2)
    with pytest.warns(UserWarning, match=r"a is cut \(1 of 2 allowed\)"):
        budget.note(["a is cut", "a is cut"])
    with pytest.warns(UserWarning, match="b is cut"):
        budget.note(["b is cut", "a is cut"])
    with pytest.warns(UserWarning), pytest.raises(DataError, match="more than 2 images are broken; c is cut"):
        budget.note(["c is cut"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(workers: int) -> None:
    stream = Stream(SceneSource(POCKET_WORLD, 0, "train", Framing(64, random_flip=True), size=50), seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(load(stream, [[3, 4], [60, 1], [7]], workers))
    assert torch.equal(before, torch.get_rng_state())
    assert [batch.ids for batch in batches] == [[stream[p].id for p in ps] for ps in ([3, 4], [60, 1], [7])]
    assert torch.equal(batches[1].images[0], stream[60].image.values)


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_error_is_raised_as_one_sentence(workers: int) -> None:
    with pytest.raises(DataError, match=r"^the image 2\.jpg cannot be used: it is cut$"):
        list(load(Stream(SomeBroken(5, {2}), 0), [[0, 1], [2, 3, 4]], workers))


def test_exceeding_the_budget_stops_the_loader() -> None:
    stream = Stream(SomeBroken(9, {1, 2, 3}), seed=0, corrupt_budget=2)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="more than 2 images are broken"):
        list(load(stream, [[i] for i in range(9)]))
    allowed = Stream(SomeBroken(9, {1, 2}), seed=0, corrupt_budget=2)
    with pytest.warns(UserWarning):
        assert [len(batch) for batch in load(allowed, [[0, 1, 2, 3, 4, 5, 6, 7, 8]])] == [9]
