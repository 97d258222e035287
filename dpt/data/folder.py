"""A folder of images with captions: `metadata.jsonl` as imagefolder has it, or a text file beside each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from dpt.data.example import ALL_PARTS, Example, ExampleImage, ExampleParts, Source
from dpt.data.files.reading import Row, content_identity, is_number, is_text, parse_line, read_bytes, read_lines, shown
from dpt.data.images import Framing, read_image
from dpt.data.mixture import can_mirror, mirrored
from dpt.errors import DataError
from dpt.keyed_random import KeyedRandom

METADATA = "metadata.jsonl"

CAPTION_KEYS = ("caption", "text", "prompt")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class CaptionedPicture:
    file_name: str
    """Relative to the folder."""
    caption: str
    weight: float
    where: str
    """File and line that say so."""
    type: str = ""
    """positive, negative or regularization, where a row says so: see dpt/data/preference/source.py."""


def is_picture_folder(folder: Path) -> bool:
    """Whether it has metadata.jsonl, or at least one image with a text file beside it."""
    if (folder / METADATA).is_file():
        return True
    return folder.is_dir() and any(file.with_suffix(".txt").is_file() for file in _pictures(folder))


def read_picture_folder(folder: Path) -> list[CaptionedPicture]:
    """Its images and captions; metadata.jsonl comes before text files. Any fault is a DataError."""
    if not folder.is_dir():
        raise DataError(f"there is no data folder {folder}{': it is a file' if folder.exists() else ''}")
    metadata = folder / METADATA
    rows = read_metadata(metadata, folder) if metadata.exists() else _read_sidecars(folder)
    if not rows:
        if metadata.exists():
            raise DataError(f"{metadata} names no image")
        raise DataError(f"there is no image in {folder}: it needs {', '.join(SUFFIXES)} files, each with a caption")
    return rows


def read_metadata(file: Path, folder: Path) -> list[CaptionedPicture]:
    """The rows of a JSONL file; their names are relative to `folder`."""
    rows = []
    for where, line in read_lines(file):
        row = parse_line(line, where)
        name = row.file_name("file_name")
        if not (folder / name).is_file():
            row.fail(f"there is no image {folder / name}")
        kind = row.text("type") if "type" in row else ""
        rows.append(CaptionedPicture(name, _caption(row), _weight(row), where, kind))
    return rows


def _caption(row: Row) -> str:
    keys = [key for key in CAPTION_KEYS if key in row]
    if not keys:
        row.fail(f"there is no caption: give it as {', '.join(map(repr, CAPTION_KEYS[:-1]))} or {CAPTION_KEYS[-1]!r}")
    captions = {row.text(key).strip() for key in keys}
    if len(captions) > 1:
        row.fail(f"{' and '.join(map(repr, keys))} differ: keep one of them")
    return captions.pop()


def _weight(row: Row) -> float:
    weight = row.content.get("weight", 1.0)
    if not is_number(weight) or not isfinite(weight) or weight < 0:
        row.fail(f"'weight' should be a number of at least 0, not {shown(weight)}")
    return float(weight)


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def _read_sidecars(folder: Path) -> list[CaptionedPicture]:
    rows = []
    for picture in _pictures(folder):
        file = picture.with_suffix(".txt")
        if not file.exists():
            raise DataError(f"{picture} has no caption: write it to {file.name}, or list all images in {METADATA}")
        try:
            caption = read_bytes(file).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"{file} is not UTF-8 text") from None
        if not caption or not is_text(caption):
            raise DataError(f"{file} holds no caption")
        rows.append(CaptionedPicture(picture.name, caption, 1.0, str(file)))
    return rows


class FolderSource(Source):
    """Images with captions and weights, without expressions and negatives."""

    def __init__(
        self, folder: Path, framing: Framing, seed: int, rows: Sequence[CaptionedPicture] | None = None
    ) -> None:
        """`rows`: some of the folder's images, under these captions; by default all of them."""
        self.folder, self.framing, self.seed = folder, framing, seed
        self.rows = read_picture_folder(folder) if rows is None else list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def captions(self) -> list[str]:
        return [row.caption for row in self.rows]

    def example(self, index: int, epoch: int = 0, parts: ExampleParts = ALL_PARTS) -> Example:
        row = self.rows[index]
        picture, _ = read_image(self.folder / row.file_name, self.folder)
        image = ExampleImage(row.file_name, self.framing.pixels(picture), sizes=self.framing.sizes(picture.size))
        example = Example(row.where, image, row.caption, row.weight)
        flip = self.framing.random_flip and KeyedRandom("folder source", self.seed, index, epoch, "flip").chance(0.5)
        if flip and can_mirror([row.caption]):
            return mirrored(example) or example
        return example

    def identity(self) -> str:
        """A hash of the captions, and of the number and size of the images. A copy of the folder has the same."""
        pictures = {self.folder / row.file_name for row in self.rows}
        metadata = self.folder / METADATA
        captions = [metadata] if metadata.exists() else [picture.with_suffix(".txt") for picture in sorted(pictures)]
        counts = {"pictures": len(pictures), "bytes": sum(picture.stat().st_size for picture in pictures)}
        return content_identity(self.folder, captions, counts)
