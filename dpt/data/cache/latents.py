"""Latents of images, encoded once and read by training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dpt.backbone import Backbone
from dpt.data.cache.contents import latents_key
from dpt.data.cache.make import SHARD_BYTES, Encoded, OnProgress, PartMaker
from dpt.data.cache.storage import CachePart, ShardMetadata, recorded_key
from dpt.data.files.reading import checked_file_name, is_whole
from dpt.data.images import Framing, ImageHeader, read_header, read_image
from dpt.data.stream import CorruptBudget
from dpt.errors import BrokenImageError, DataError
from dpt.untrusted import check_regular

FOLDER = "latents"

LATENTS, MIRRORED = "latents", "mirrored"

ABSENT = -1

COMPARED = 100
"""Number of images whose size is compared on opening: enough to notice a cache of other data."""


class LatentsMaker(PartMaker):
    """Scaled posterior means, as training uses them; with --random_flip also those of the mirrored images."""

    unit = "image"

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
        key = latents_key(backbone.folder, framing, dtype, recorded_key(out / FOLDER))
        super().__init__(out / FOLDER, key, names, shapes, dtype, batch_size, shard_bytes)
        self.backbone, self.images, self.framing, self.workers = backbone, images, framing, workers
        self.budget = CorruptBudget(corrupt_budget)

    def is_current(self, name: str, facts: ShardMetadata) -> bool:
        """By its size. An image that was deleted stays cached."""
        size = _bytes(self.images / name)
        was_broken = isinstance(facts[1], str)
        return size == facts[0] or (size == ABSENT and not was_broken)

    def missing(self, say: OnProgress) -> list[str]:
        """Broken images of an earlier run count against the budget too."""
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
            good = [image for image in batch if image.pixels is not None]
            broken = {image.name: image.facts for image in batch if image.pixels is None}
            for name, facts in broken.items():
                self._count(name, facts)
            rows: dict[str, Tensor] = {}
            if good:
                pixels = torch.stack([image.pixels for image in good])
                rows = {LATENTS: self.backbone.encode_images(pixels)}
                if self.framing.random_flip:
                    rows[MIRRORED] = self.backbone.encode_images(pixels.flip(-1))
            yield [(image.name, image.facts) for image in good], rows, broken

    def _count(self, name: str, facts: ShardMetadata) -> None:
        broken = BrokenImageError.of(self.images / name, facts[1])
        if self.budget.allowed < 1:
            raise broken
        self.budget.note([str(broken)])


@dataclass(frozen=True)
class ImageFacts:
    """Metadata of an encoded image. A broken image has its size in bytes and the reason instead."""

    bytes: int
    width: int
    height: int
    orientation: int


@dataclass(frozen=True)
class _DecodedImage:
    name: str
    facts: ShardMetadata
    pixels: Tensor | None = None


class _Pictures(Dataset[_DecodedImage]):
    def __init__(self, images: Path, framing: Framing) -> None:
        self.images, self.framing = images, framing

    def __getitem__(self, name: str) -> _DecodedImage:
        path = self.images / name
        size = _bytes(path)
        try:
            image, header = read_image(path, self.images / name.partition("/")[0])
        except BrokenImageError as broken:
            return _DecodedImage(name, [size, broken.reason])
        return _DecodedImage(name, [size, *header.stored_size, header.orientation], self.framing.pixels(image))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return ABSENT


class CachedLatents:
    """A LatentStore. Images that were broken when the cache was made raise the same error."""

    def __init__(self, part: CachePart, images: Path) -> None:
        self.part, self.images = part, images
        _check_facts(part)
        for name in [*part.rows][:: -(-len(part.rows) // COMPARED) or 1]:
            size = _bytes(images / name)
            if size not in (ABSENT, part.rows[name].facts[0]):
                raise DataError(
                    f"{images / name} is not the image that the cache {part.folder} was made of: run `dpt cache`"
                    " again, or train with --cache none"
                )

    @property
    def has_mirrored(self) -> bool:
        return MIRRORED in self.part.tensors

    def covers(self, file_names: Iterable[str]) -> bool:
        return True

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor:
        name = self._known(picture)
        return self.part.read(name, MIRRORED if mirrored else LATENTS).float()

    def header(self, picture: Path) -> ImageHeader:
        known = ImageFacts(*self.part.rows[self._known(picture)].facts)
        return ImageHeader(picture, (known.width, known.height), known.orientation)

    def _known(self, picture: Path) -> str:
        name = picture.relative_to(self.images).as_posix()
        if name in self.part.broken:
            raise BrokenImageError.of(picture, self.part.broken[name][1])
        if name not in self.part.rows:
            raise DataError(
                f"{picture} is not in the cache {self.part.folder}: `dpt cache` adds what is missing; --cache none"
                " trains without a cache"
            )
        return name

    def __str__(self) -> str:
        n, broken = len(self.part.rows), len(self.part.broken)
        text = f"latents of {n} image{'' if n == 1 else 's'} in {self.part.key['dtype']}"
        text += ", mirrored ones too" if self.has_mirrored else ""
        return text + (f", {broken} broken" if broken else "")


def _check_facts(part: CachePart) -> None:
    """Check names, sizes and reasons of the images in the manifest."""
    if not isinstance(part.key.get("dtype"), str) or LATENTS not in part.tensors:
        raise DataError(f"{part.folder} is not a cache of latents")
    for name in (*part.rows, *part.broken):
        checked_file_name(name, str(part.folder))
    for name, row in part.rows.items():
        sound = all(is_whole(value) and 0 <= value < 2**62 for value in row.facts)
        if not sound or len(row.facts) != len(fields(ImageFacts)):
            raise DataError(f"{part.folder} lacks the size of the image {name!r}: run `dpt cache` again")
    for name, facts in part.broken.items():
        if len(facts) != 2 or not isinstance(facts[1], str):
            raise DataError(f"{part.folder} lacks the reason why {name!r} is broken: run `dpt cache` again")


class NpyLatents:
    """A LatentStore of published .npy files, which record neither the model nor the preprocessing."""

    has_mirrored = False

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder, self.shape = folder, shape
        self.stems = {file.stem for file in folder.glob("*.npy")}

    def covers(self, file_names: Iterable[str]) -> bool:
        return any(Path(name).stem in self.stems for name in file_names)

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor:
        if mirrored:
            raise DataError(f"{self.folder} has no latents of mirrored images")
        file = self.folder / f"{picture.stem}.npy"
        if picture.stem not in self.stems:
            raise DataError(f"{picture} has no latents: there is no file {file}")
        try:
            # Mapped, so that a header that claims more than the file holds costs no memory.
            check_regular(file)
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy raises many kinds of errors for a broken header
            raise DataError(f"{file} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != self.shape:
            raise DataError(f"{file} should hold latents of the shape {self.shape}, not {_describe(values)}")
        latents = torch.from_numpy(np.array(values, np.float32))
        if not torch.isfinite(latents).all():
            raise DataError(f"{file} holds numbers that are not finite")
        return latents

    def header(self, picture: Path) -> ImageHeader:
        """Sizes are not published, so the image is opened for its boxes."""
        return read_header(picture)

    @cached_property
    def digest(self) -> str:
        """Hash of the file names."""
        return hashlib.sha256("\n".join(sorted(self.stems)).encode()).hexdigest()

    def __str__(self) -> str:
        return f"published latents of {len(self.stems)} image{'' if len(self.stems) == 1 else 's'}"


def _describe(values: object) -> str:
    if not isinstance(values, np.ndarray):
        return "several arrays"
    return f"{values.dtype} of {values.shape}"
