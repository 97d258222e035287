"""Latents of pictures: made, and read in place of the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpt.backbone import Backbone
from dpt.data.cache.key import latents_key
from dpt.data.cache.make import SHARD_BYTES, Encoded, Maker, Say
from dpt.data.cache.part import Part
from dpt.data.cache.shards import Facts
from dpt.data.faults import BrokenPicture, DataFault
from dpt.data.files.reading import checked_file_name, is_whole
from dpt.data.framing import Framing
from dpt.data.pictures import Header, read_picture
from dpt.data.stream import CorruptBudget

FOLDER = "latents"
LATENTS, MIRRORED = "latents", "mirrored"
ABSENT = -1
COMPARED = 100
"""Pictures whose size is compared when a cache is opened: enough to notice a cache of other data."""


class LatentsMaker(Maker):
    """The posterior's mean, scaled, as training takes it; with --random_flip that of the mirrored picture too."""

    unit = "picture"

    def __init__(
        self,
        backbone: Backbone,
        images: Path,
        framing: Framing,
        names: Sequence[str],
        out: Path,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
        workers: int = 0,
        corrupt_budget: int = 0,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        side = framing.resolution
        shape = (backbone.latent_channels, *backbone.latent_size(side, side))
        shapes = {LATENTS: shape, **({MIRRORED: shape} if framing.random_flip else {})}
        key = latents_key(backbone.folder, framing, dtype)
        super().__init__(out / FOLDER, key, names, shapes, dtype, batch_size, shard_bytes)
        self.backbone, self.images, self.framing, self.workers = backbone, images, framing, workers
        self.budget = CorruptBudget(corrupt_budget)

    def is_current(self, name: str, facts: Facts) -> bool:
        """By its size. A picture that is gone is cached all the same."""
        size = _bytes(self.images / name)
        was_broken = isinstance(facts[1], str)
        return size == facts[0] or (size == ABSENT and not was_broken)

    def missing(self, say: Say) -> list[str]:
        """Pictures that an earlier run left out count against the budget too."""
        missing = super().missing(say)
        for name, facts in self.builder.broken.items():
            self._count(name, facts)
        return missing

    @torch.no_grad()
    def encode(self, batches: list[list[str]]) -> Iterator[Encoded]:
        loader = DataLoader(
            _Pictures(self.images, self.framing),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),
        )
        for batch in loader:
            good = [one for one in batch if one.pixels is not None]
            broken = {one.name: one.facts for one in batch if one.pixels is None}
            for name, facts in broken.items():
                self._count(name, facts)
            rows: dict[str, Tensor] = {}
            if good:
                pixels = torch.stack([one.pixels for one in good])
                rows = {LATENTS: self.backbone.encode_images(pixels)}
                if self.framing.random_flip:
                    rows[MIRRORED] = self.backbone.encode_images(pixels.flip(-1))
            yield [(one.name, one.facts) for one in good], rows, broken

    def _count(self, name: str, facts: Facts) -> None:
        broken = BrokenPicture.of(self.images / name, facts[1])
        if self.budget.allowed < 1:
            raise broken
        self.budget.note([str(broken)])


@dataclass(frozen=True)
class Known:
    """The facts of a picture that was encoded. Of a broken one they are its size in bytes and what is wrong."""

    bytes: int
    width: int
    height: int
    orientation: int


@dataclass(frozen=True)
class _Read:
    name: str
    facts: Facts
    pixels: Tensor | None = None


class _Pictures(Dataset[_Read]):
    def __init__(self, images: Path, framing: Framing) -> None:
        self.images, self.framing = images, framing

    def __getitem__(self, name: str) -> _Read:
        path = self.images / name
        size = _bytes(path)
        try:
            image, header = read_picture(path, self.images / name.partition("/")[0])
        except BrokenPicture as broken:
            return _Read(name, [size, broken.reason])
        return _Read(name, [size, *header.stored_size, header.orientation], self.framing.pixels(image))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return ABSENT


class CachedLatents:
    """A LatentStore. A picture that was broken when the cache was made is broken, for the same reason."""

    def __init__(self, part: Part, images: Path) -> None:
        self.part, self.images = part, images
        _check_facts(part)
        for name in [*part.rows][:: -(-len(part.rows) // COMPARED) or 1]:
            size = _bytes(images / name)
            if size not in (ABSENT, part.rows[name].facts[0]):
                raise DataFault(
                    f"{images / name} is not the picture that the cache {part.folder} was made of: `dpt cache` makes it"
                    " again, and --cache none goes on without"
                )

    @property
    def has_mirrored(self) -> bool:
        return MIRRORED in self.part.tensors

    def covers(self, file_names: Iterable[str]) -> bool:
        return True

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor:
        name = self._known(picture)
        return self.part.read(name, MIRRORED if mirrored else LATENTS).float()

    def header(self, picture: Path) -> Header:
        known = Known(*self.part.rows[self._known(picture)].facts)
        return Header(picture, (known.width, known.height), known.orientation)

    def _known(self, picture: Path) -> str:
        name = picture.relative_to(self.images).as_posix()
        if name in self.part.broken:
            raise BrokenPicture.of(picture, self.part.broken[name][1])
        if name not in self.part.rows:
            raise DataFault(
                f"{picture} is not in the cache {self.part.folder}: `dpt cache` adds what is missing, and --cache none"
                " goes on without"
            )
        return name

    def __str__(self) -> str:
        n, broken = len(self.part.rows), len(self.part.broken)
        told = f"latents of {n} picture{'' if n == 1 else 's'} in {self.part.key['dtype']}"
        told += ", mirrored ones too" if self.has_mirrored else ""
        return told + (f", {broken} broken" if broken else "")


def _check_facts(part: Part) -> None:
    """Those of pictures; a cache of other things has others."""
    if not isinstance(part.key.get("dtype"), str) or LATENTS not in part.tensors:
        raise DataFault(f"{part.folder} is no cache of latents")
    for name in (*part.rows, *part.broken):
        checked_file_name(name, str(part.folder))
    for name, row in part.rows.items():
        sound = all(is_whole(value) and 0 <= value < 2**62 for value in row.facts)
        if not sound or len(row.facts) != len(fields(Known)):
            raise DataFault(f"{part.folder} does not say what picture {name!r} is: `dpt cache` makes it again")
    for name, facts in part.broken.items():
        if len(facts) != 2 or not isinstance(facts[1], str):
            raise DataFault(f"{part.folder} does not say why {name!r} is broken: `dpt cache` makes it again")
