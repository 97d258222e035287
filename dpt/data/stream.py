"""The order in which a source is read, batches of it, loaded ahead, and the pairs of images and texts of a batch."""

from __future__ import annotations

import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import derived_seed
from dpt.data.example import ALL_PARTS, Batch, EncodedTexts, Example, ExampleParts, Source, TextCache, collate
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


# The VAE's first layers hold whole images; more of them at once only costs memory.
PICTURES_AT_ONCE = 16

# Kinds of image: z, z-, z?.
TRUE, HARD, RANDOM = 0, 1, 2


@dataclass(frozen=True)
class Pair:
    """A kind of image of a batch, conditioned on a kind of text."""

    picture: int
    text: str


EXPRESSION, CAPTION, HARD_CAPTION, RANDOM_CAPTION = "r", "y", "y-", "y?"


GROUNDING = (Pair(TRUE, EXPRESSION),)

MATCHING = (
    Pair(TRUE, CAPTION),
    Pair(TRUE, HARD_CAPTION),
    Pair(TRUE, RANDOM_CAPTION),
    Pair(HARD, CAPTION),
    Pair(RANDOM, CAPTION),
)
"""Calls 2 to 6 of section 2.1; call 1 is that for grounding."""


def texts_of(batch: Batch) -> dict[str, list[str]]:
    """The texts of a batch by kind."""
    texts = {} if batch.expressions is None else {EXPRESSION: batch.expressions.texts}
    if batch.captions is not None:
        texts[CAPTION] = batch.captions
    if batch.negatives is not None:
        texts[HARD_CAPTION] = batch.negatives.hard.captions
        if batch.negatives.random is not None:
            texts[RANDOM_CAPTION] = batch.negatives.random.captions
    return texts


def encode_texts(backbone: Backbone, batch: Batch, kinds: Collection[str]) -> dict[str, Condition]:
    """The texts of these kinds: those that were not read from a cache, in one call of the text encoder."""
    texts = {kind: own for kind, own in texts_of(batch).items() if kind in kinds}
    prompts = [prompt for own in texts.values() for prompt in own]
    encoded = backbone.encode_text(prompts) if batch.encoded is None else _complete(backbone, prompts, batch.encoded)
    return dict(zip(texts, encoded.split([len(own) for own in texts.values()]), strict=True))


def _complete(backbone: Backbone, prompts: Sequence[str], known: EncodedTexts) -> Condition:
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known.rows]
    rows = {**known.rows, **{prompt: len(known.condition) + nth for nth, prompt in enumerate(missing)}}
    parts = [known.condition.to(backbone.device), *([backbone.encode_text(missing)] if missing else [])]
    return Condition.stack(parts)[[rows[prompt] for prompt in prompts]]


def encode_pair_images(backbone: Backbone, batch: Batch, kinds: Sequence[int]) -> Tensor:
    """Latents (kinds,B,C,h,w) of these kinds of image: the mean of the posterior, as a cache stores it."""
    negatives = batch.negatives
    by_kind = {TRUE: batch.images}
    if negatives is not None:
        by_kind[HARD] = negatives.hard.images
        if negatives.random is not None:
            by_kind[RANDOM] = negatives.random.images
    latents = torch.cat([by_kind[kind] for kind in kinds])
    if not batch.latent:
        latents = torch.cat([backbone.encode_images(part) for part in latents.split(PICTURES_AT_ONCE)])
    return latents.unflatten(0, (len(kinds), len(batch)))


def sizes_of(batch: Batch) -> dict[int, Tensor]:
    """`Condition.time_ids` (B,6) of each kind of image; empty for a model that does not take them."""
    by_kind = {TRUE: batch.sizes}
    if batch.negatives is not None:
        by_kind[HARD] = batch.negatives.hard.sizes
        if batch.negatives.random is not None:
            by_kind[RANDOM] = batch.negatives.random.sizes
    return {kind: sizes for kind, sizes in by_kind.items() if sizes is not None}


def pair_condition(texts: Mapping[str, Condition], sizes: Mapping[int, Tensor], pairs: Sequence[Pair]) -> Condition:
    """The text of each pair, with the sizes of its image if there are any, (pairs*B,...)."""
    condition = Condition.stack([texts[pair.text] for pair in pairs])
    return replace(condition, time_ids=torch.cat([sizes[pair.picture] for pair in pairs])) if sizes else condition


def pair_features(
    backbone: Backbone, name: str, noisy: Tensor, t: Tensor, condition: Condition, pairs: Sequence[Pair]
) -> Tensor:
    """The feature of each pair, (pairs*B,C,h,w), for z_t (kinds,B,...) and t (B,): one truncated forward."""
    z = torch.cat([noisy[pair.picture] for pair in pairs])
    return backbone.features(z, t.repeat(len(pairs)), condition, name)[0]
