"""Preference records as training examples: the preprocessed images of a prompt, and which of them was chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpt.data.example import ExampleParts
from dpt.data.images import read_image
from dpt.data.preference.records import PreferenceRecord
from dpt.data.stream import ShuffledStream


class Preprocessing(Protocol):
    """How a classifier takes images and prompts."""

    def pixels(self, images: Sequence[Any]) -> Tensor: ...

    def tokens(self, prompts: Sequence[str]) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class PreferenceExample:
    id: str
    pixels: Tensor
    """(n,3,H,W)"""
    tokens: Mapping[str, Tensor]
    """Each (1,L)."""
    target: tuple[float, ...]
    ranks: tuple[float, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreferenceBatch:
    ids: list[str]
    pixels: Tensor
    """(sum of sizes,3,H,W), the groups one after another."""
    tokens: Mapping[str, Tensor]
    """Each (B,L)."""
    sizes: list[int]
    target: Tensor
    """(sum of sizes,)"""
    ranks: list[tuple[float, ...]]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PreferenceBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PreferenceBatch:
        return self._map(Tensor.pin_memory)

    def _map(self, move: Any) -> PreferenceBatch:
        tokens = {name: move(value) for name, value in self.tokens.items()}
        return replace(self, pixels=move(self.pixels), tokens=tokens, target=move(self.target))


def collate_preferences(examples: Sequence[PreferenceExample]) -> PreferenceBatch:
    """Groups of different sizes stay as they are: nothing is padded."""
    return PreferenceBatch(
        ids=[example.id for example in examples],
        pixels=torch.cat([example.pixels for example in examples]),
        tokens={name: torch.cat([example.tokens[name] for example in examples]) for name in examples[0].tokens},
        sizes=[len(example.target) for example in examples],
        target=torch.tensor([share for example in examples for share in example.target], dtype=torch.float32),
        ranks=[example.ranks for example in examples],
        skipped=[sentence for example in examples for sentence in example.skipped],
    )


class PreferenceStream(ShuffledStream[PreferenceExample, PreferenceBatch]):
    """Preference records in the order of a seed; their images are read and preprocessed when they are needed."""

    def __init__(
        self,
        records: Sequence[PreferenceRecord],
        folder: Path,
        preprocessing: Preprocessing,
        seed: int,
        shuffle: bool = True,
        corrupt_budget: int = 0,
    ) -> None:
        super().__init__(seed, shuffle, corrupt_budget)
        self.records, self.folder, self.preprocessing = list(records), folder, preprocessing

    def only(self, parts: ExampleParts) -> PreferenceStream:
        return self

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, epoch: int, skipped: tuple[str, ...]) -> PreferenceExample:
        record = self.records[index]
        pictures = [read_image(self.folder / name, self.folder)[0] for name in record.pictures]
        pixels = torch.cat([self.preprocessing.pixels([picture]) for picture in pictures])
        tokens = self.preprocessing.tokens([record.prompt])
        return PreferenceExample(record.where, pixels, tokens, record.target, record.ranks, skipped)

    def collate(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        return collate_preferences(examples)

    def example_id(self, position: int) -> str:
        return self[position].id

    def identity(self) -> str:
        """A hash of prompts, choices, and names and sizes of the images, whatever the folder is called."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(repr((record.prompt, record.pictures, record.target)).encode())
            digest.update(repr([(self.folder / name).stat().st_size for name in record.pictures]).encode())
        return digest.hexdigest()
