from __future__ import annotations

from collections import Counter

import pytest
import torch

from dpt.data.example import ALL_PARTS, CAPTION_ONLY, Example, ExampleImage, ExampleParts, Source
from dpt.data.mixture import EveryNth, Mixture
from dpt.data.stream import Stream


class Named(Source):
    """Examples named by source, index and epoch; the caption is the requested parts."""

    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n

    def __len__(self) -> int:
        return self.n

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        return Example(f"{self.name}{index}.{epoch}", ExampleImage("", torch.zeros(1)), str(parts))


def mixture() -> Mixture:
    return Mixture([(Named("a", 60), 0.75), (Named("b", 7), 0.25)])


def test_epoch_has_each_share_and_covers_the_first_source_once() -> None:
    stream = Stream(mixture(), seed=3)
    assert len(stream) == 80
    first, second = ([stream[position].id for position in range(80 * e, 80 * e + 80)] for e in range(2))
    assert Counter(name[0] for name in first) == {"a": 60, "b": 20}
    assert {name for name in first if name[0] == "a"} == {f"a{i}.0" for i in range(60)}
    assert {name for name in second if name[0] == "a"} == {f"a{i}.1" for i in range(60)}


def test_sources_are_interleaved_from_the_start() -> None:
    names = "".join(Stream(mixture(), seed=3)[position].id[0] for position in range(40))
    assert 5 <= names.count("b") <= 15 and "b" in names[:12]


def test_small_source_repeats_in_its_own_epochs() -> None:
    source = mixture()
    ids = [source.example(index, epoch).id for epoch in range(7) for index in range(60, 80)]
    assert ids == [f"b{i % 7}.{i // 7}" for i in range(140)]


def test_example_depends_only_on_seed_and_position() -> None:
    once, again, other = Stream(mixture(), 1), Stream(mixture(), 1), Stream(mixture(), 2)
    forwards = [once[position].id for position in range(100)]
    assert [again[position].id for position in reversed(range(100))] == forwards[::-1]
    assert [other[position].id for position in range(100)] != forwards


def test_parts_are_passed_to_every_source() -> None:
    assert {mixture().example(index, 0, CAPTION_ONLY).caption for index in range(80)} == {str(CAPTION_ONLY)}


def test_mixture_needs_sources_with_positive_shares() -> None:
    for sources in ([], [(Named("a", 3), 0.0)], [(Named("a", 3), float("nan"))]):
        with pytest.raises(ValueError, match="positive share"):
            Mixture(sources)


def test_every_nth_selects_every_nth_example() -> None:
    thin = EveryNth(Named("a", 9), 4)
    assert [thin[index].id for index in range(len(thin))] == ["a0.0", "a4.0", "a8.0"]
    with pytest.raises(ValueError, match="at least 1"):
        EveryNth(Named("a", 9), 0)
