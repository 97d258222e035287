"""A cached part on disk: safetensors shards with an index each, under one key, the manifest written last."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dpt.data.cache.contents import CacheKey, differences
from dpt.errors import DataError, UserError, reason
from dpt.files import atomic_file, exclusive_lock, sha256
from dpt.untrusted import parse_json, read_bytes, read_text
from dpt.weights import save_tensors

ShardMetadata = list[Any]
"""JSON values stored with an item: of an image, its size and orientation."""


@dataclass(frozen=True)
class Index:
    """The contents of one shard."""

    bytes: int
    sha256: str
    names: list[str]
    checksums: list[list[int]]
    """CRC-32 of each row, for each tensor in order of name: cheap enough to verify on every read."""
    facts: list[ShardMetadata]
    broken: dict[str, ShardMetadata] = field(default_factory=dict)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def index_file(shard: Path) -> Path:
    return shard.with_suffix(".json")


def write_shard(
    file: Path,
    items: Sequence[tuple[str, ShardMetadata]],
    tensors: Mapping[str, Tensor],
    broken: Mapping[str, ShardMetadata],
) -> Index:
    """Writes the index last: a shard without one is unfinished."""
    checksums = [[checksum(tensors[name][row]) for name in sorted(tensors)] for row in range(len(items))]
    with atomic_file(file) as work:
        save_tensors(tensors, work)
        size, digest = work.stat().st_size, sha256(work)
    index = Index(size, digest, [name for name, _ in items], checksums, [facts for _, facts in items], dict(broken))
    with atomic_file(index_file(file)) as work:
        work.write_text(json.dumps(vars(index), ensure_ascii=True) + "\n", encoding="utf-8")
    return index


def read_index(file: Path) -> Index:
    try:
        index = Index(**parse_json(read_text(file)))
        _check_index(index)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {reason(error)}") from None
    except (ValueError, TypeError, UserError) as error:
        raise DataError(f"{file} is not the index of a cache: {error}") from None
    return index


def _check_index(index: Index) -> None:
    """Check the types of all fields."""
    lists = (index.names, index.checksums, index.facts)
    if not all(isinstance(value, list) for value in lists) or len({len(values) for values in lists}) > 1:
        raise ValueError("its lists differ in length")
    if not (isinstance(index.bytes, int) and isinstance(index.sha256, str) and isinstance(index.broken, dict)):
        raise ValueError("the size, hash or broken items of its shard are missing")
    if not all(isinstance(name, str) for name in index.names):
        raise ValueError("its names are not strings")
    if not all(isinstance(row, list) and all(isinstance(value, int) for value in row) for row in index.checksums):
        raise ValueError("its checksums are not whole numbers")
    if not all(isinstance(value, list) for value in (*index.facts, *index.broken.values())):
        raise ValueError("the metadata of its items are not lists")


def read_row(file: Path, tensor: str, row: int, expected: int, what: str) -> Tensor:
    """Read one row. Opens the file each time, so that worker processes share no handle."""
    try:
        with safe_open(file, framework="pt") as shard:
            values: Tensor = shard.get_slice(tensor)[row].clone()
    except (SafetensorError, OSError, IndexError) as error:
        raise DataError(f"{file} cannot be read: {error}; `dpt cache` makes it again") from None
    except Exception as error:  # safetensors raises many kinds of errors for a broken header
        raise DataError(f"{file} has no row {row} of {tensor!r}: {error}; `dpt cache` makes it again") from None
    if checksum(values) != expected:
        raise DataError(f"{file} is corrupted: the checksum of {what} differs; `dpt cache` makes it again")
    return values


def checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data)


SHARD_NAME = re.compile(r"shard-\d{5,12}\.safetensors", re.ASCII)


def recorded_key(folder: Path) -> CacheKey:
    """The key of the cache in this folder; empty if there is none."""
    try:
        content = parse_json(read_text(folder / KEY))
    except (OSError, ValueError, UserError):
        return {}
    return content if isinstance(content, dict) else {}


KEY, MANIFEST, LOCK = "key.json", "manifest.json", "lock"


IsCurrent = Callable[[str, ShardMetadata], bool]
"""Whether an item is unchanged since it was cached, judged by its metadata."""


class UnfinishedPartError(UserError):
    """The part has shards but no manifest."""


@dataclass(frozen=True, slots=True)
class CachedItem:
    shard: int
    at: int
    checksums: Sequence[int]
    facts: ShardMetadata


class CachePart:
    """A finished part, for reading."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], digest: str) -> None:
        self.folder, self.digest = folder, digest
        self.key: CacheKey = manifest["key"]
        self.tensors: list[str] = manifest["tensors"]
        if not isinstance(self.key, dict) or not isinstance(self.tensors, list):
            raise TypeError("its key or its list of tensors is missing")
        self.rows: dict[str, CachedItem] = {}
        self.broken: dict[str, ShardMetadata] = {}
        self.shards: list[Path] = []
        for nth, (name, facts) in enumerate(manifest["shards"].items()):
            if not SHARD_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a shard")
            self.shards.append(folder / name)
            self._add(nth, _checked_index(folder / name, facts))

    @classmethod
    def open(cls, folder: Path) -> CachePart:
        """Checks the sizes of the shards and the hashes of their indices. Rows are verified when they are read."""
        file = folder / MANIFEST
        try:
            content = read_bytes(file)
            manifest = parse_json(content)
            return cls(folder, manifest, hashlib.sha256(content).hexdigest())
        except FileNotFoundError:
            raise UnfinishedPartError(f"the cache {folder} is not finished: `dpt cache` continues it") from None
        except OSError as error:
            raise DataError(f"{file} cannot be read: {reason(error)}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{file} is not the manifest of a cache: {error}") from None

    def _add(self, shard: int, index: Index) -> None:
        for at, (name, checksums, facts) in enumerate(zip(index.names, index.checksums, index.facts, strict=True)):
            if len(checksums) != len(self.tensors):
                raise ValueError(f"{name!r} lacks a checksum for one of its tensors")
            self.rows[name] = CachedItem(shard, at, tuple(checksums), facts)
        self.broken.update(index.broken)

    def read(self, name: str, tensor: str) -> Tensor:
        row = self.rows[name]
        expected = row.checksums[self.tensors.index(tensor)]
        return read_row(self.shards[row.shard], tensor, row.at, expected, repr(name))


def _checked_index(shard: Path, facts: Mapping[str, Any]) -> Index:
    try:
        size = shard.stat().st_size
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror}; `dpt cache` makes it again") from None
    if not isinstance(facts, dict):
        raise TypeError(f"the entry of {shard.name} is not an object")
    if size != facts["bytes"]:
        raise DataError(f"{shard} is corrupted: it has {size} bytes, not {facts['bytes']}; `dpt cache` makes it again")
    index = read_index(index_file(shard))
    if sha256(index_file(shard)) != facts["index_sha256"]:
        raise DataError(f"{index_file(shard)} is corrupted: its SHA-256 differs; `dpt cache` makes it again")
    return index


class PartBuilder:
    """Writes a part. Finished shards stay; what is missing is added."""

    def __init__(self, folder: Path, key: CacheKey, tensors: Sequence[str]) -> None:
        self.folder, self.key, self.tensors = folder, key, sorted(tensors)
        self.indices: dict[int, Index] = {}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this key, against other writers."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.folder / LOCK, f"another process is writing the cache {self.folder}"):
                self._claim()
                yield
        except OSError as error:
            raise UserError(f"the cache {self.folder} cannot be written: {reason(error)}") from None

    def _claim(self) -> None:
        file = self.folder / KEY
        if file.exists():
            try:
                made = parse_json(read_text(file))
            except ValueError as error:
                raise UserError(f"{file} is not valid JSON: {error}") from None
            if not isinstance(made, dict):
                raise UserError(f"{file} is not the key of a cache")
            if differing := differences(made, self.key):
                raise UserError(
                    f"the cache {self.folder} was made with other options ({'; '.join(differing)}): remove it, or give"
                    " another --out FOLDER"
                )
        elif others := sorted(path.name for path in self.folder.iterdir() if path.name != LOCK):
            raise UserError(f"{self.folder} is not a cache and not empty: it has {others[0]}")
        else:
            _write_json(file, self.key)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()

    def resume(self, is_current: IsCurrent) -> list[str]:
        """Delete damaged or outdated shards; return a sentence for each."""
        sentences = []
        for shard in sorted(self.folder.glob("shard-*.safetensors")):
            problem = self._problem(shard, is_current)
            if problem is not None:
                (self.folder / MANIFEST).unlink(missing_ok=True)  # it lists this shard
                index_file(shard).unlink(missing_ok=True)
                shard.unlink()
                sentences.append(f"{shard.name} is made again: {problem}")
        for orphan in self.folder.glob("shard-*.json"):
            if not orphan.with_suffix(".safetensors").exists():
                (self.folder / MANIFEST).unlink(missing_ok=True)
                orphan.unlink()
                sentences.append(f"{orphan.stem}.safetensors is made again: it was missing")
        return sentences

    def _problem(self, shard: Path, is_current: IsCurrent) -> str | None:
        if not index_file(shard).exists():
            return "it was never finished"
        try:
            index = read_index(index_file(shard))
        except DataError as fault:
            return str(fault)
        if shard.stat().st_size != index.bytes or sha256(shard) != index.sha256:
            return "its size or SHA-256 differs from what was written"
        items = [*zip(index.names, index.facts, strict=True), *index.broken.items()]
        try:
            changed = next((name for name, facts in items if not is_current(name, facts)), None)
        except (IndexError, TypeError):
            return "its index lacks the metadata of its items"
        if changed is not None:
            return f"{changed} has changed since"
        self.indices[int(shard.stem.removeprefix("shard-"))] = index
        return None

    @property
    def done(self) -> set[str]:
        return {name for index in self.indices.values() for name in (*index.names, *index.broken)}

    @property
    def broken(self) -> dict[str, ShardMetadata]:
        return {name: facts for index in self.indices.values() for name, facts in index.broken.items()}

    def add(
        self,
        items: Sequence[tuple[str, ShardMetadata]],
        tensors: Mapping[str, Tensor],
        broken: Mapping[str, ShardMetadata],
    ) -> None:
        """Write a shard under the first free number, so that a replaced shard keeps its number."""
        number = next(n for n in range(len(self.indices) + 1) if n not in self.indices)
        self.indices[number] = write_shard(shard_file(self.folder, number), items, tensors, broken)

    def finish(self) -> CachePart:
        shards = {}
        for number in sorted(self.indices):
            file, index = shard_file(self.folder, number), self.indices[number]
            shards[file.name] = {
                "bytes": index.bytes,
                "sha256": index.sha256,
                "items": len(index.names),
                "broken": len(index.broken),
                "index_sha256": sha256(index_file(file)),
            }
        broken = sorted(self.broken)
        _write_json(
            self.folder / MANIFEST, {"key": self.key, "tensors": self.tensors, "shards": shards, "broken": broken}
        )
        return CachePart.open(self.folder)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(file) as work:
        work.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
