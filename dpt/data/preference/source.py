"""Preference records as training examples, and the training data of HPS tuning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpt.data.example import ALL_PARTS, Example, ExampleParts, Source
from dpt.data.folder import METADATA, CaptionedPicture, FolderSource, read_metadata, read_picture_folder
from dpt.data.images import Framing, read_image
from dpt.data.mixture import Mixture
from dpt.data.preference.records import PreferenceRecord
from dpt.data.stream import ShuffledStream
from dpt.errors import DataError, UserError
from dpt.keyed_random import KeyedRandom


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


POSITIVE, NEGATIVE, REGULARIZATION = "positive", "negative", "regularization"

TYPES = (POSITIVE, NEGATIVE, REGULARIZATION)

NEGATIVE_PREFIX = "Weird image. "


def training_caption(prompt: str, kind: str, prefix: str = NEGATIVE_PREFIX) -> str:
    """A negative has the prefix once in front; all others keep their caption."""
    return prompt if kind != NEGATIVE or prompt.startswith(prefix) else f"{prefix}{prompt}"


class CaptionDropout(Source):
    """Replaces a fraction of the captions by `left`: the empty text, or for losers the prefix (the negative prompt)."""

    def __init__(self, source: Source, probability: float, seed: int, left: str = "") -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"a dropout is between 0 and 1, not {probability}")
        self.source, self.probability, self.seed, self.left = source, probability, seed, left

    def __len__(self) -> int:
        return len(self.source)

    @property
    def captioned(self) -> bool:
        return self.source.captioned

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        example = self.source.example(index, epoch, parts)
        dropped = KeyedRandom("caption dropout", self.seed, index, epoch).chance(self.probability)
        return replace(example, caption=self.left) if dropped else example


@dataclass(frozen=True)
class TuningConfig:
    """Which images are trained on, under which captions, in which ratios."""

    negative: str = "prefix"
    """prefix: losers under the prefixed prompt beside the winners. adapter: losers alone under their plain prompts, for
    a LoRA that predicts what to avoid. none: no losers."""
    negative_prefix: str = NEGATIVE_PREFIX
    ratios: tuple[float, float, float] | None = None
    """Of positive, negative and regularisation examples; None shows every image once per epoch."""
    prompt_dropout: float = 0.0
    """Fraction of captions of winners and regularisation images that are left empty."""
    negative_dropout: float = 0.0
    """Fraction of losers' captions of which the prefix alone is left."""


def read_selected(folder: Path, annotation: Path | None = None) -> list[CaptionedPicture]:
    """The rows of metadata.jsonl, or of a file such as the published annotation.jsonl."""
    return read_picture_folder(folder) if annotation is None else read_metadata(annotation, folder)


def tuning_rows(
    selected: Sequence[CaptionedPicture], regularization: Sequence[CaptionedPicture], config: TuningConfig
) -> dict[str, list[CaptionedPicture]]:
    """By type; a row without a type is a positive among the selected and a regularisation image elsewhere."""
    if odd := next((row for row in (*selected, *regularization) if row.type not in ("", *TYPES)), None):
        raise DataError(f"{odd.where}: 'type' is one of {', '.join(TYPES)}, not {odd.type!r}")
    by_type: dict[str, list[CaptionedPicture]] = {kind: [] for kind in TYPES}
    for row in selected:
        by_type[row.type or POSITIVE].append(row)
    by_type[REGULARIZATION] += [row for row in regularization if row.type in ("", REGULARIZATION)]
    prefix = config.negative_prefix
    if config.negative == "prefix":
        by_type[NEGATIVE] = [
            replace(row, caption=training_caption(row.caption, NEGATIVE, prefix)) for row in by_type[NEGATIVE]
        ]
    elif config.negative == "adapter":
        by_type[NEGATIVE] = [replace(row, caption=row.caption.removeprefix(prefix)) for row in by_type[NEGATIVE]]
        by_type[POSITIVE] = []
    else:
        by_type[NEGATIVE] = []
    return by_type


@dataclass(frozen=True)
class TuningData:
    source: Source
    parts: dict[str, Source]
    """The source of each type that has images, without dropout."""
    identity: str


def tuning_data(
    folder: Path,
    annotation: Path | None,
    regularization_folder: Path | None,
    regularization: Path | None,
    config: TuningConfig,
    framing: Framing,
    seed: int,
) -> TuningData:
    """The mixture that tuning trains on. Each image is read from its own folder."""
    selected = read_selected(folder, annotation)
    other: list[CaptionedPicture] = []
    if regularization_folder is not None:
        other = read_selected(regularization_folder, regularization)
    rows = tuning_rows(selected, other, config)
    parts: dict[str, Source] = {}
    trained: dict[str, Source] = {}
    for kind in TYPES:
        own = [row for row in rows[kind] if row not in other]
        sources: list[Source] = [FolderSource(folder, framing, seed, own)] if own else []
        if kind == REGULARIZATION and other and regularization_folder is not None:
            sources.append(FolderSource(regularization_folder, framing, seed, other))
        if sources:
            parts[kind] = concatenated(sources)
            prefixed = kind == NEGATIVE and config.negative == "prefix"
            dropout = config.negative_dropout if prefixed else config.prompt_dropout
            left = config.negative_prefix if prefixed else ""
            trained[kind] = CaptionDropout(parts[kind], dropout, seed, left)
    if not parts:
        raise DataError(f"{annotation or folder / METADATA} has no image to train on with --negative {config.negative}")
    return TuningData(_mixed(trained, config), parts, _identity(rows))


def concatenated(sources: Sequence[Source]) -> Source:
    """Every example once per epoch."""
    return sources[0] if len(sources) == 1 else Mixture([(source, len(source)) for source in sources])


def _mixed(parts: dict[str, Source], config: TuningConfig) -> Source:
    if config.ratios is None:
        return concatenated(list(parts.values()))
    if not all(isfinite(ratio) and ratio >= 0 for ratio in config.ratios) or not any(config.ratios):
        raise UserError(f"--ratios are three numbers from 0 up, not {config.ratios}")
    ratios = dict(zip(TYPES, config.ratios, strict=True))
    if missing := [kind for kind, ratio in ratios.items() if ratio and kind not in parts]:
        raise UserError(f"--ratios gives {missing[0]} images a share, and there are none")
    return Mixture([(source, ratios[kind]) for kind, source in parts.items() if ratios[kind]])


def _identity(rows: dict[str, list[CaptionedPicture]]) -> str:
    """A hash of names, captions, types and weights."""
    digest = hashlib.sha256()
    for kind, own in rows.items():
        for row in own:
            digest.update(repr((kind, row.file_name, row.caption, row.weight)).encode())
    return digest.hexdigest()
