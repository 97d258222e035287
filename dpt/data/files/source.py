"""Examples from a data folder in the published formats. Annotations are read at once, pictures when asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dpt.data.example import Example, ExampleImage, GroundedRegion, MatchingExample, ReferringExpression, Source
from dpt.data.files.annotations import ExpressionRow, cut_to_picture, read_expressions
from dpt.data.files.hard_negatives import HardNegativeFiles, open_hard_negatives
from dpt.data.files.reading import DataRoot, NegativeTypes, read_negative_types
from dpt.data.images import Framing, ImageHeader, read_header, read_image
from dpt.data.mirror import mirrored
from dpt.errors import DataError
from dpt.keyed_random import KeyedRandom

TRIES = 64


class LatentStore(Protocol):
    """Latents of pictures, made with the same framing; with one of these no picture is decoded."""

    @property
    def has_mirrored(self) -> bool:
        """Whether it has the latents of the mirrored pictures too."""

    def covers(self, file_names: Iterable[str]) -> bool:
        """Whether it was made of these pictures."""

    def latents(self, picture: Path, mirrored: bool = False) -> Tensor: ...

    def header(self, picture: Path) -> ImageHeader: ...


class FileSource(Source):
    """Expressions joined with the captions of their pictures; or either alone, for validation."""

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
            raise DataError("the cache has no latents of mirrored pictures: make one with --random_flip")
        self.images, self.framing, self.seed, self.latents = images, framing, seed, latents
        self.expressions, self.negatives, self.types = expressions, negatives, types or {}
        if expressions is not None and negatives is not None:
            _refuse_uncaptioned(expressions, negatives)

    def __len__(self) -> int:
        if self.expressions is not None:
            return len(self.expressions)
        assert self.negatives is not None
        return len(self.negatives)

    def example(self, index: int, epoch: int = 0) -> Example:
        example = self._matched(index, epoch) if self.expressions is None else self._referred(index, epoch)
        if self.framing.random_flip and self._draws(index, epoch, "flip").chance(0.5):
            return mirrored(example) or example
        return example

    def _draws(self, index: int, epoch: int, purpose: str) -> KeyedRandom:
        return KeyedRandom("file source", self.seed, index, epoch, purpose)

    def _referred(self, index: int, epoch: int) -> Example:
        assert self.expressions is not None
        referred = self.expressions[index]
        example = Example(
            id=f"{referred.where} (id {referred.id})",
            image=self._picture(referred.file_name),
            expression=ReferringExpression(referred.text, self._regions(referred)),
        )
        if self.negatives is None:
            return example
        id_ = self._draws(index, epoch, "caption").pick(self.negatives.ids_of[referred.file_name])
        return replace(example, matching=self._matching(id_, referred.file_name, index, epoch))

    def _matched(self, index: int, epoch: int) -> Example:
        assert self.negatives is not None
        id_ = self.negatives.ids[index]
        name = self.negatives.row(id_).file_name
        return Example(
            id=self.negatives.where(id_),
            image=self._picture(name),
            matching=self._matching(id_, name, index, epoch),
        )

    def _regions(self, referred: ExpressionRow) -> tuple[GroundedRegion, ...]:
        """Of the boxes that are in view."""
        path = self.images / referred.file_name
        header = read_header(path, self.images) if self.latents is None else self.latents.header(path)
        regions = []
        for box in referred.boxes:
            corners = header.upright(box.corners, referred.size)
            framed = self.framing.box(cut_to_picture(corners, header.size, referred.where), header.size)
            if framed is not None:
                regions.append(GroundedRegion(framed, box.spans))
        return tuple(regions)

    def _matching(self, id_: int, name: str, index: int, epoch: int) -> MatchingExample:
        assert self.negatives is not None
        row, where = self.negatives.row(id_), self.negatives.where(id_)
        types = self.types.get(id_)
        captions = [nth for nth, text in enumerate(row.captions) if text != row.title]
        images = [nth for nth, image in enumerate(row.images) if image != name]
        if not captions or not images:
            raise DataError(f"{where}: every negative is the picture's own caption, or the picture itself")
        if types is not None and (len(types.captions), len(types.images)) != (len(row.captions), len(row.images)):
            raise DataError(f"{where}: the negatives are not as many as their types in negatives.jsonl")
        caption = self._draws(index, epoch, "hard caption").pick(captions)
        image = self._draws(index, epoch, "hard image").pick(images)
        return MatchingExample(
            caption=row.title,
            hard_caption=row.captions[caption],
            random_caption=self._random_caption(row.title, name, self._draws(index, epoch, "random caption")),
            hard_image=self._picture(row.images[image]),
            random_image=self._random_image(name, self._draws(index, epoch, "random image")),
            hard_caption_type=None if types is None else types.captions[caption],
            hard_image_type=None if types is None else types.images[image],
        )

    def _random_caption(self, title: str, name: str, draws: KeyedRandom) -> str:
        """Of another picture, and in other words."""
        assert self.negatives is not None
        for _ in range(TRIES):
            id_ = self.negatives.another_id(name, draws.below)
            if id_ is not None and (other := self.negatives.row(id_).title) != title:
                return other
        raise DataError(f"no other caption than {title!r} was found in {self.negatives.where(self.negatives.ids[0])} …")

    def _random_image(self, name: str, draws: KeyedRandom) -> ExampleImage:
        assert self.negatives is not None
        other = self.negatives.another_image(name, draws.below)
        if other is None:
            raise DataError(f"no other picture than {name} has captions; a random one cannot be drawn")
        return self._picture(other)

    def _picture(self, name: str) -> ExampleImage:
        path = self.images / name
        if self.latents is not None:
            mirrored = self.latents.latents(path, mirrored=True) if self.framing.random_flip else None
            return ExampleImage(name, self.latents.latents(path), latent=True, mirrored=mirrored)
        image, _ = read_image(path, self.images)
        return ExampleImage(name, self.framing.pixels(image))


def training_files(
    root: DataRoot, dataset: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Expressions of `dataset` (published: refall) with the captions and negatives of their pictures."""
    return FileSource(
        root.images("train2014"),
        framing,
        seed,
        read_expressions(root.expressions(dataset, "train")),
        open_hard_negatives(root, "train"),
        read_negative_types(root.negative_types, "train"),
        latents,
    )


def expression_files(
    root: DataRoot, dataset: str, split: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Published validation and test expressions are of train2014 pictures."""
    expressions = read_expressions(root.expressions(dataset, split))
    return FileSource(root.images("train2014"), framing, seed, expressions, latents=latents)


def matching_files(
    root: DataRoot, part: str, framing: Framing, seed: int, latents: LatentStore | None = None
) -> FileSource:
    """Pictures are decoded if the latents are of another part, as the published ones are of train2014 only."""
    negatives = open_hard_negatives(root, part)
    types = read_negative_types(root.negative_types, part)
    if latents is not None and not latents.covers(negatives.ids_of):
        latents = None
    return FileSource(root.images(f"{part}2014"), framing, seed, negatives=negatives, types=types, latents=latents)


def _refuse_uncaptioned(expressions: list[ExpressionRow], negatives: HardNegativeFiles) -> None:
    without = [one for one in expressions if one.file_name not in negatives.ids_of]
    if without:
        raise DataError(
            f"{without[0].where}: no caption of {without[0].file_name} has hard negatives"
            f" ({len(without)} of {len(expressions)} expressions are of such pictures)"
        )
