"""Examples from a data folder in the published layout: annotations are read when it is opened, images on demand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dpt.data.example import (
    ALL_PARTS,
    Example,
    ExampleImage,
    ExampleParts,
    GroundedRegion,
    Negative,
    Negatives,
    ReferringExpression,
    Source,
)
from dpt.data.files.annotations import ExpressionRow, cut_to_picture, read_expressions
from dpt.data.files.hard_negatives import HardNegativeFiles, open_hard_negatives
from dpt.data.files.reading import DataRoot, NegativeTypes, read_negative_types
from dpt.data.images import Framing, ImageHeader, read_header, read_image
from dpt.data.mixture import can_mirror, mirrored
from dpt.errors import DataError
from dpt.keyed_random import KeyedRandom

TRIES = 64


class LatentStore(Protocol):
    """Latents of images, made with the same framing; with one of these no image is decoded."""

    @property
    def has_mirrored(self) -> bool:
        """Whether it has the latents of the mirrored images too."""

    def covers(self, file_names: Iterable[str]) -> bool:
        """Whether it was made of these images."""

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor: ...

    def header(self, picture: Path) -> ImageHeader: ...


class FileSource(Source):
    """Expressions joined with the captions of their images; or either alone, for validation."""

    def __init__(
        self,
        images: Path,
        framing: Framing,
        seed: int,
        expressions: list[ExpressionRow] | None = None,
        negatives: HardNegativeFiles | None = None,
        types: dict[int, NegativeTypes] | None = None,
        latents: LatentStore | None = None,
    ) -> None:
        if expressions is None and negatives is None:
            raise ValueError("a source of examples needs expressions, or captions, or both")
        if latents is not None and framing.random_flip and not latents.has_mirrored:
            raise DataError("the cache has no latents of mirrored images: make one with --random_flip")
        self.images, self.framing, self.seed, self.latents = images, framing, seed, latents
        self.expressions, self.negatives, self.types = expressions, negatives, types or {}
        if expressions is not None and negatives is not None:
            _refuse_uncaptioned(expressions, negatives)

    def __len__(self) -> int:
        if self.expressions is not None:
            return len(self.expressions)
        assert self.negatives is not None
        return len(self.negatives)

    @property
    def captioned(self) -> bool:
        return self.negatives is not None

    def captions(self) -> Iterable[str]:
        """Read one by one, from as many files where the folder has one for each caption."""
        if self.negatives is not None:
            yield from (self.negatives.row(caption_id).title for caption_id in self.negatives.ids)

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        if self.expressions is None:
            assert self.negatives is not None
            example, caption_id = self._captioned_example(self.negatives, self.negatives.ids[index])
        else:
            row = self.expressions[index]
            example, caption_id = self._referring_example(row, parts), None
            if self.negatives is not None:
                caption_id = self._rng(index, epoch, "caption").choice(self.negatives.ids_of[row.file_name])
                example = replace(example, caption=self.negatives.row(caption_id).title)
        flip = self.framing.random_flip and self._rng(index, epoch, "flip").chance(0.5)
        drawn = None
        if caption_id is not None and (parts.hard_negatives or flip):
            drawn = self._draw_negatives(caption_id, index, epoch)
        if drawn is not None and parts.hard_negatives:
            example = replace(example, negatives=self._open_negatives(drawn, parts.random_negatives))
        if flip and self._can_mirror(index, example.caption, drawn):
            return mirrored(example) or example
        return example

    def _rng(self, index: int, epoch: int, purpose: str) -> KeyedRandom:
        return KeyedRandom("file source", self.seed, index, epoch, purpose)

    def _captioned_example(self, negatives: HardNegativeFiles, caption_id: int) -> tuple[Example, int]:
        row = negatives.row(caption_id)
        return Example(negatives.where(caption_id), self._picture(row.file_name), row.title), caption_id

    def _referring_example(self, row: ExpressionRow, parts: ExampleParts) -> Example:
        return Example(
            id=f"{row.where} (id {row.id})",
            image=self._picture(row.file_name),
            expression=ReferringExpression(row.text, self._regions(row)) if parts.expression else None,
        )

    def _can_mirror(self, index: int, caption: str | None, drawn: _DrawnNegatives | None) -> bool:
        """Decided by every text of the example, so that the parts that a task reads do not change which ones flip."""
        texts = [] if drawn is None else [drawn.hard_caption, drawn.random_caption]
        texts += [] if caption is None else [caption]
        if self.expressions is None:
            return can_mirror(texts)
        row = self.expressions[index]
        return can_mirror(texts, row.text, [span for box in row.boxes for span in box.spans])

    def _regions(self, row: ExpressionRow) -> tuple[GroundedRegion, ...]:
        """The boxes that are in view."""
        path = self.images / row.file_name
        header = read_header(path, self.images) if self.latents is None else self.latents.header(path)
        regions = []
        for box in row.boxes:
            corners = header.upright(box.corners, row.size)
            framed = self.framing.box(cut_to_picture(corners, header.size, row.where), header.size)
            if framed is not None:
                regions.append(GroundedRegion(framed, box.spans))
        return tuple(regions)

    def _draw_negatives(self, caption_id: int, index: int, epoch: int) -> _DrawnNegatives:
        assert self.negatives is not None
        row, where = self.negatives.row(caption_id), self.negatives.where(caption_id)
        types = self.types.get(caption_id)
        captions = [nth for nth, text in enumerate(row.captions) if text != row.title]
        images = [nth for nth, image in enumerate(row.images) if image != row.file_name]
        if not captions or not images:
            raise DataError(f"{where}: every negative is the image's own caption, or the image itself")
        if types is not None and (len(types.captions), len(types.images)) != (len(row.captions), len(row.images)):
            raise DataError(
                f"{where}: the number of negatives differs from the number of their types in negatives.jsonl"
            )
        caption = self._rng(index, epoch, "hard caption").choice(captions)
        image = self._rng(index, epoch, "hard image").choice(images)
        return _DrawnNegatives(
            hard_caption=row.captions[caption],
            hard_image=row.images[image],
            hard_caption_type=None if types is None else types.captions[caption],
            hard_image_type=None if types is None else types.images[image],
            random_caption=self._random_caption(row.title, row.file_name, self._rng(index, epoch, "random caption")),
            random_image=self._random_image(row.file_name, self._rng(index, epoch, "random image")),
        )

    def _open_negatives(self, drawn: _DrawnNegatives, with_random: bool) -> Negatives:
        hard = Negative(
            drawn.hard_caption, self._picture(drawn.hard_image), drawn.hard_caption_type, drawn.hard_image_type
        )
        random = Negative(drawn.random_caption, self._picture(drawn.random_image)) if with_random else None
        return Negatives(hard, random)

    def _random_caption(self, title: str, file_name: str, rng: KeyedRandom) -> str:
        """The caption of another image, with another text."""
        assert self.negatives is not None
        for _ in range(TRIES):
            caption_id = self.negatives.another_id(file_name, rng.randrange)
            if caption_id is not None and (other := self.negatives.row(caption_id).title) != title:
                return other
        first = self.negatives.where(self.negatives.ids[0])
        raise DataError(f"{first}: no caption other than {title!r} exists to draw a random negative from")

    def _random_image(self, file_name: str, rng: KeyedRandom) -> str:
        assert self.negatives is not None
        other = self.negatives.another_image(file_name, rng.randrange)
        if other is None:
            raise DataError(f"no image other than {file_name} has captions: a random negative cannot be drawn")
        return other

    def _picture(self, file_name: str) -> ExampleImage:
        path = self.images / file_name
        if self.latents is not None:
            mirrored = self.latents.latents(path, mirrored=True) if self.framing.random_flip else None
            sizes = self.framing.sizes(self.latents.header(path).size) if self.framing.with_sizes else None
            return ExampleImage(file_name, self.latents.latents(path), latent=True, mirrored=mirrored, sizes=sizes)
        image, _ = read_image(path, self.images)
        return ExampleImage(file_name, self.framing.pixels(image), sizes=self.framing.sizes(image.size))


@dataclass(frozen=True)
class _DrawnNegatives:
    """Which negatives an example has, before their images are opened."""

    hard_caption: str
    hard_image: str
    hard_caption_type: str | None
    hard_image_type: str | None
    random_caption: str
    random_image: str


@dataclass(frozen=True)
class FileSelection:
    """Which of a data folder's annotation files a training run reads."""

    dataset: str = "refall"
    """Referring expressions to train on."""
    validation: tuple[str, ...] = ("refcoco", "refcoco+", "refcocog")
    """Referring expressions to validate on."""


def open_training_data(
    root: DataRoot,
    selection: FileSelection,
    framing: Framing,
    seed: int,
    validation_seed: int = 0,
    latents: LatentStore | None = None,
) -> tuple[FileSource, dict[str, FileSource]]:
    """The training source, and validation sources by name. `dpt data check` calls this too."""
    unflipped = replace(framing, random_flip=False)
    names = selection.validation if root.has_expressions else ()
    validation = {name: expression_files(root, name, "val", unflipped, validation_seed, latents) for name in names}
    validation["captions"] = matching_files(root, "val", unflipped, validation_seed, latents)
    return training_files(root, selection.dataset, framing, seed, latents), validation


def training_files(
    root: DataRoot, dataset: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Expressions of `dataset` (published: refall) with the captions and negatives of their images.

    A root without ReC/ has captions and negatives only.
    """
    return FileSource(
        root.images("train2014"),
        framing,
        seed,
        read_expressions(root.require_expressions(dataset, "train")) if root.has_expressions else None,
        open_hard_negatives(root, "train"),
        read_negative_types(root.negative_types, "train"),
        latents,
    )


def expression_files(
    root: DataRoot, dataset: str, split: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Published validation and test expressions are of train2014 images."""
    expressions = read_expressions(root.require_expressions(dataset, split))
    return FileSource(root.images("train2014"), framing, seed, expressions, latents=latents)


def matching_files(
    root: DataRoot, part: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Decodes images if the latents are of another part: the published ones are of train2014 only."""
    negatives = open_hard_negatives(root, part)
    types = read_negative_types(root.negative_types, part)
    if latents is not None and not latents.covers(negatives.ids_of):
        latents = None
    return FileSource(root.images(f"{part}2014"), framing, seed, negatives=negatives, types=types, latents=latents)


def _refuse_uncaptioned(expressions: list[ExpressionRow], negatives: HardNegativeFiles) -> None:
    without = [row for row in expressions if row.file_name not in negatives.ids_of]
    if without:
        raise DataError(
            f"{without[0].where}: no caption of {without[0].file_name} has hard negatives"
            f" ({len(without)} of {len(expressions)} expressions are of such images)"
        )
