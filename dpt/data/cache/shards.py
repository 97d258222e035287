"""Shards: safetensors files of bounded size with the index of each beside it, written after it.

    shard-00000.safetensors   tensors of one name each, a row for each item
    shard-00000.json          size and SHA-256 of the shard; its items by row; items for which there is no row
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpt.data.faults import DataFault
from dpt.folders import whole_file
from dpt.plain_json import parse_json

Facts = list[Any]
"""What else is known of an item, as JSON: for a picture, what its header says."""


@dataclass(frozen=True)
class Index:
    """What one shard holds."""

    bytes: int
    sha256: str
    names: list[str]
    checksums: list[list[int]]
    """CRC-32 of each row, for each tensor in the order of their names: cheap enough to hold every read against."""
    facts: list[Facts]
    broken: dict[str, Facts] = field(default_factory=dict)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def index_file(shard: Path) -> Path:
    return shard.with_suffix(".json")


def write_shard(
    file: Path, items: Sequence[tuple[str, Facts]], tensors: Mapping[str, Tensor], broken: Mapping[str, Facts]
) -> Index:
    """The index last: a shard without one was never finished."""
    checksums = [[checksum(tensors[name][row]) for name in sorted(tensors)] for row in range(len(items))]
    with whole_file(file) as work:
        work.touch()
        mode = work.stat().st_mode  # safetensors would keep the file to its owner
        try:
            save_file(dict(tensors), work)
            work.chmod(mode)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        size, digest = work.stat().st_size, sha256(work)
    index = Index(size, digest, [name for name, _ in items], checksums, [facts for _, facts in items], dict(broken))
    with whole_file(index_file(file)) as work:
        work.write_text(json.dumps(vars(index), ensure_ascii=True) + "\n", encoding="utf-8")
    return index


def read_index(file: Path) -> Index:
    try:
        index = Index(**parse_json(file.read_text(encoding="utf-8")))
        _check_index(index)
    except OSError as error:
        raise DataFault(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise DataFault(f"{file} is not the index of a cache: {error}") from None
    return index


def _check_index(index: Index) -> None:
    """Types, so that whoever goes on with it has to think of none."""
    lists = (index.names, index.checksums, index.facts)
    if not all(isinstance(one, list) for one in lists) or len({len(one) for one in lists}) > 1:
        raise ValueError("its lists are not of one length")
    if not (isinstance(index.bytes, int) and isinstance(index.sha256, str) and isinstance(index.broken, dict)):
        raise ValueError("it does not say what its shard is like")
    if not all(isinstance(name, str) for name in index.names):
        raise ValueError("its names are not texts")
    if not all(isinstance(row, list) and all(isinstance(one, int) for one in row) for row in index.checksums):
        raise ValueError("its checksums are not whole numbers")
    if not all(isinstance(one, list) for one in (*index.facts, *index.broken.values())):
        raise ValueError("what it knows of its items are no lists")


def read_row(file: Path, tensor: str, row: int, expected: int, what: str) -> Tensor:
    """One row and no more of the file, opened and closed: nothing is held open, nothing shared between processes."""
    try:
        with safe_open(file, framework="pt") as opened:
            values: Tensor = opened.get_slice(tensor)[row].clone()
    except (SafetensorError, OSError, IndexError) as error:
        raise DataFault(f"{file} cannot be read: {error}; `dpt cache` makes it again") from None
    except Exception as error:  # a header may say anything of its tensors
        raise DataFault(f"{file} has no row {row} of {tensor!r}: {error}; `dpt cache` makes it again") from None
    if checksum(values) != expected:
        raise DataFault(f"{file} is corrupted: of {what} it has not what was written; `dpt cache` makes it again")
    return values


def checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
