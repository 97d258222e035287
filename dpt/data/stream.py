"""The order in which a source is read, and batches of it, loaded ahead."""

from __future__ import annotations

import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from dpt.backbone.rng import derived_seed
from dpt.data.example import ALL_PARTS, Batch, Example, ExampleParts, Source, TextCache, collate
from dpt.errors import BrokenImageError, DataError, UserError
from dpt.keyed_random import KeyedRandom

ROUNDS = 6

MIX = 0x9E3779B97F4A7C15

WORD = (1 << 64) - 1


def epoch_of(position: int, length: int) -> int:
    return position // length


def shuffled_index(seed: int, position: int, length: int) -> int:
    """The item at this position: every epoch is its own permutation of 0 … length - 1.

    A Feistel network permutes the smallest square power of two that holds the length; a value beyond the length is
    permuted again until it falls below.
    """
    if length < 1 or position < 0:
        raise ValueError(f"there is no position {position} in a source of {length} examples")
    key = derived_seed(seed, epoch_of(position, length), "order")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    index = position % length
    while True:
        index = _permute(index, key, half_bits)
        if index < length:
            return index


def _permute(value: int, key: int, half_bits: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for nth in range(ROUNDS):
        left, right = right, left ^ (_mixed(right, key, nth) & mask)
    return left << half_bits | right


def _mixed(value: int, key: int, nth: int) -> int:
    """The finaliser of splitmix64."""
    value = (value + key + (nth + 1) * MIX) & WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


MAX_REPLACEMENTS = 16


class Loadable(Protocol):
    """An example or a batch, which lists the faults of the examples whose place it takes."""

    @property
    def skipped(self) -> Sequence[str]: ...


E = TypeVar("E", bound=Loadable)
B = TypeVar("B", bound=Loadable)


class ShuffledStream(Dataset[E], ABC, Generic[E, B]):
    """Examples by position, a pure function of (source, seed, position): shuffled in each epoch, or in order.

    A broken image is an error, unless the corrupt budget allows some: then another example, drawn for that position,
    takes its place and lists the fault in `skipped`. A batch keeps its size, and the data do not depend on how
    positions are split into batches, processes or runs.
    """

    def __init__(self, seed: int, shuffle: bool = True, corrupt_budget: int = 0) -> None:
        self.seed, self.shuffle, self.corrupt_budget = seed, shuffle, corrupt_budget

    @abstractmethod
    def __len__(self) -> int:
        """Examples in an epoch."""

    @abstractmethod
    def read(self, index: int, epoch: int, skipped: tuple[str, ...]) -> E:
        """The example with this index; a broken image is a BrokenImageError."""

    @abstractmethod
    def collate(self, examples: Sequence[E]) -> B: ...

    def batches(self, positions: Iterable[Sequence[int]], workers: int = 0, pin_memory: bool = False) -> Iterator[B]:
        return load(self, positions, workers, pin_memory=pin_memory)

    def __getitem__(self, position: int) -> E:
        n = len(self)
        index, epoch = position % n, 0
        if self.shuffle:
            index, epoch = shuffled_index(self.seed, position, n), epoch_of(position, n)
        skipped: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self.read(index, epoch, tuple(skipped))
            except BrokenImageError as broken:
                if self.corrupt_budget < 1:
                    raise
                skipped.append(str(broken))
                index = KeyedRandom("stand-in", self.seed, position, attempt).randrange(n)
        raise DataError(f"{MAX_REPLACEMENTS} examples in a row have broken images; {skipped[-1]}")


class Stream(ShuffledStream[Example, Batch]):
    """The examples of a source."""

    def __init__(
        self,
        source: Source,
        seed: int,
        shuffle: bool = True,
        corrupt_budget: int = 0,
        parts: ExampleParts = ALL_PARTS,
        text_cache: TextCache | None = None,
    ) -> None:
        super().__init__(seed, shuffle, corrupt_budget)
        self.source, self.parts, self.text_cache = source, parts, text_cache

    def only(self, parts: ExampleParts) -> Stream:
        """The same examples, reduced to what a task reads of them."""
        return Stream(self.source, self.seed, self.shuffle, self.corrupt_budget, parts, self.text_cache)

    def example_id(self, position: int) -> str:
        return self[position].id

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, epoch: int, skipped: tuple[str, ...]) -> Example:
        return replace(self.source.example(index, epoch, self.parts), skipped=skipped)

    def collate(self, examples: Sequence[Example]) -> Batch:
        batch = collate(examples)
        if self.text_cache is None:
            return batch
        return replace(batch, encoded=self.text_cache.read([text for example in examples for text in example.texts]))


class CorruptBudget:
    """Warns of each broken image that this process reads, once, and raises DataError beyond the allowed number."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.broken: set[str] = set()

    def note(self, skipped: Iterable[str]) -> None:
        for sentence in skipped:
            if sentence not in self.broken:
                self.broken.add(sentence)
                warnings.warn(f"{sentence} ({len(self.broken)} of {self.allowed} allowed)", stacklevel=2)
                if len(self.broken) > self.allowed:
                    raise DataError(f"more than {self.allowed} images are broken; {sentence}")


def load(
    stream: ShuffledStream[E, B],
    positions: Iterable[Sequence[int]],
    workers: int = 0,
    budget: CorruptBudget | None = None,
    pin_memory: bool = False,
) -> Iterator[B]:
    """A batch for each sequence of positions, in order, loaded ahead by worker processes."""
    budget = budget or CorruptBudget(stream.corrupt_budget)
    loader = DataLoader(
        _Fetch(stream),
        batch_sampler=positions,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(_collate, stream.collate),
        pin_memory=pin_memory,
        worker_init_fn=_leave_stopping_to_the_parent,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, _Failed):
            raise DataError(batch.sentence)
        budget.note(batch.skipped)
        yield batch


def _leave_stopping_to_the_parent(worker: int) -> None:
    """A scheduler or Ctrl-C signals all processes of a job; a worker that obeys takes its parent down unsaved.

    Workers end when their queue says so, or when their parent is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Failed:
    """A user's error in a worker, returned as a value: raised there, it would become a traceback."""

    sentence: str


class _Fetch(Dataset[Any]):
    def __init__(self, stream: ShuffledStream[Any, Any]) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> Any:
        try:
            return self.stream[position]
        except UserError as error:
            return _Failed(str(error))


def _collate(collate_examples: Callable[[Sequence[Any]], Any], fetched: list[Any]) -> Any:
    failed = next((item for item in fetched if isinstance(item, _Failed)), None)
    if failed:
        return failed
    try:
        return collate_examples(fetched)
    except UserError as error:
        return _Failed(str(error))
