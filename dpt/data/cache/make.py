"""Encodes the missing items of a part, shard by shard, after checking the disk space."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dpt.data.cache.contents import CacheKey
from dpt.data.cache.storage import CachePart, PartBuilder, ShardMetadata
from dpt.errors import DataError, UserError

SHARD_BYTES = 2**28

INDEX_BYTES = 250
"""Approximate size of an item's index entry."""


OnProgress = Callable[[str], None]

Encoded = tuple[list[tuple[str, ShardMetadata]], dict[str, Tensor], dict[str, ShardMetadata]]
"""Items, their rows in each tensor, and what could not be encoded."""


class PartMaker(ABC):
    """Encodes and writes one part: latents of images, or states of texts."""

    unit: str

    def __init__(
        self,
        folder: Path,
        key: CacheKey,
        names: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        batch_size: int,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.builder = PartBuilder(folder, key, list(shapes))
        self.names, self.shapes, self.dtype, self.batch_size = names, shapes, dtype, batch_size
        self.item_bytes = dtype.itemsize * sum(map(prod, shapes.values()))
        self.shard_items = max(1, shard_bytes // self.item_bytes)

    @abstractmethod
    def is_current(self, name: str, facts: ShardMetadata) -> bool: ...

    @abstractmethod
    def encode(self, batches: list[list[str]]) -> Iterator[Encoded]:
        """One result for each batch, in order."""

    def missing(self, say: OnProgress) -> list[str]:
        """Items that no valid shard holds. Reads all existing shards."""
        for sentence in self.builder.resume(self.is_current):
            say(sentence)
        done = self.builder.done
        return [name for name in self.names if name not in done]

    def write(self, missing: list[str]) -> CachePart:
        with tqdm(
            total=len(self.names), initial=len(self.names) - len(missing), unit=self.unit,
            desc=self.builder.folder.name, disable=None,
        ) as bar:  # fmt: skip
            self._write(missing, bar)
        return self.builder.finish()

    def _write(self, missing: list[str], bar: tqdm[None]) -> None:
        """No batch spans two shards, so that a shard does not depend on the run that writes it."""
        shards = [
            [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            for part in (missing[i : i + self.shard_items] for i in range(0, len(missing), self.shard_items))
        ]
        encoded = self.encode([batch for batches in shards for batch in batches])
        for batches in shards:
            self._write_shard(encoded, batches, bar)

    def _write_shard(self, encoded: Iterator[Encoded], batches: list[list[str]], bar: tqdm[None]) -> None:
        most = sum(map(len, batches))
        whole = {name: torch.empty(most, *shape, dtype=self.dtype) for name, shape in self.shapes.items()}
        items: list[tuple[str, ShardMetadata]] = []
        broken: dict[str, ShardMetadata] = {}
        for batch in batches:
            good, rows, lost = next(encoded)
            for tensor, values in rows.items():
                whole[tensor][len(items) : len(items) + len(good)] = self._checked(values, [name for name, _ in good])
            items += good
            broken |= lost
            bar.update(len(batch))
        self.builder.add(items, {name: values[: len(items)] for name, values in whole.items()}, broken)

    def _checked(self, values: Tensor, names: list[str]) -> Tensor:
        stored = values.to("cpu", self.dtype)
        bad = (~torch.isfinite(stored).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"the model's output for {names[bad[0]]!r} is not finite; its batch was not stored")
        return stored


def make(makers: Sequence[PartMaker], say: OnProgress) -> list[CachePart]:
    """Write all parts. Raises UserError before writing anything if the disk has too little space."""
    with ExitStack() as claims:
        for maker in makers:
            claims.enter_context(maker.builder.claimed())
        missing = [maker.missing(say) for maker in makers]
        room = [len(names) * (maker.item_bytes + INDEX_BYTES) for maker, names in zip(makers, missing, strict=True)]
        free = shutil.disk_usage(makers[0].builder.folder).free
        for maker, names, needed in zip(makers, missing, room, strict=True):
            folder, total = maker.builder.folder, len(maker.names)
            say(f"{folder}: {len(names)} of {total} {maker.unit}s are to be encoded, {readable_size(needed)}")
        if sum(room) > free:
            raise UserError(
                f"the disk of {makers[0].builder.folder.parent} has too little space: the cache needs"
                f" {readable_size(sum(room))} and {readable_size(free)} are free"
            )
        return [maker.write(names) for maker, names in zip(makers, missing, strict=True)]


def readable_size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
