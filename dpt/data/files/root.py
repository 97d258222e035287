"""A data folder in the published layout: where its files lie, and what it holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dpt.errors import DataError
from dpt.files import sha256

IMAGES = Path("coco/images")

CAPTIONS = Path("coco/annotations")

PROMPTS = Path("coco/annotations_processed_v1/five_category.json")

REC = Path("ReC/mdetr/OpenSource")

ITM = Path("ITM/coco")

HARD_NEGATIVES = "{split}_hard_neg_t20_i4OpenClip_ViT-H-14"
"""The published name. In an export of rendered scenes the negatives are made instead of mined."""

CAPTIONS_OF_IMAGES = "imgname2txtid.json"

REC_SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}

TOP_FOLDERS = ("coco", "ReC", "ITM")


@dataclass(frozen=True)
class DataRoot:
    path: Path

    @classmethod
    def open(cls, path: Path) -> DataRoot:
        """Raises DataError if the folder is missing or has another layout, with the folder that was probably meant."""
        if not path.is_dir():
            raise DataError(f"there is no data folder {path}{': it is a file' if path.exists() else ''}")
        if not _has_layout(path):
            meant = _nearby_root(path)
            own = "or make such a folder of your own images with `dpt data from-folder`"
            hint = f"; did you mean {meant}?" if meant else f": give the folder that holds them, {own}"
            raise DataError(f"{path} has none of the folders {', '.join(f'{name}/' for name in TOP_FOLDERS)}{hint}")
        return cls(path)

    def images(self, split: str) -> Path:
        """split: train2014 or val2014."""
        return self.path / IMAGES / split

    def captions(self, split: str) -> Path:
        return self.path / CAPTIONS / f"captions_{split}.json"

    def expressions(self, dataset: str, split: str) -> Path:
        """dataset: refall, refcoco, refcoco+ or refcocog; split: train, val, testA, testB or test."""
        return self.path / REC / f"finetune_{dataset}_{split}.json"

    @property
    def has_expressions(self) -> bool:
        """Whether there are referring expressions at all; without them, training is matching only."""
        return (self.path / REC.parts[0]).is_dir()

    def require_expressions(self, dataset: str, split: str) -> Path:
        """The same file, or a DataError that names the datasets that are there and the flag that chooses one."""
        file = self.expressions(dataset, split)
        if file.exists():
            return file
        names = sorted(other.name for other in file.parent.glob(f"finetune_*_{split}.json"))
        datasets = [name.removeprefix("finetune_").removesuffix(f"_{split}.json") for name in names]
        flag = "--dataset_name" if split == "train" else "--dataset_name_val"
        hint = f"; the folder has {', '.join(names)}: choose with {flag} {datasets[0]}" if names else ""
        raise DataError(f"there is no file {file}{hint}")

    def hard_negatives(self, part: str) -> Path:
        """The folder with one file for each caption; part: train or val."""
        return self.path / ITM / HARD_NEGATIVES.format(split=part)

    def hard_negatives_table(self, part: str) -> Path:
        folder = self.hard_negatives(part)
        return folder.with_name(f"{folder.name}.tsv")

    @property
    def negative_types(self) -> Path:
        """Only exports of rendered scenes have it."""
        return self.path / "negatives.jsonl"

    @property
    def prompts(self) -> Path:
        return self.path / PROMPTS

    def identity(self, dataset: str = "refall") -> str:
        """A hash of what training on `dataset` reads: its annotation files by content, its images by number.

        A copy of the data in another folder has the same identity.
        """
        annotations = [self.expressions(dataset, "train"), self.hard_negatives_table("train")]
        folder = self.hard_negatives("train")
        if folder.is_dir():
            # Training reads the folder instead of the table. Its index and its size stand for its thousands of files.
            annotations[1] = folder / CAPTIONS_OF_IMAGES
        counts = {"pictures": _entries(self.images("train2014")), "captions": _entries(folder)}
        return content_identity(self.path, annotations, counts)


def content_identity(root: Path, files: Iterable[Path], counts: Mapping[str, int]) -> str:
    """SHA-256 over the names and contents of `files`, and some counts."""
    contents = {file.relative_to(root).as_posix(): sha256(file) for file in files if file.is_file()}
    return hashlib.sha256(json.dumps([contents, counts], sort_keys=True).encode()).hexdigest()


def _entries(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(1 for _ in entries)
    except OSError:
        return 0


def _has_layout(path: Path) -> bool:
    return any((path / name).is_dir() for name in TOP_FOLDERS)


def _nearby_root(path: Path) -> Path | None:
    """A data folder one level below, or up to three levels above."""
    try:
        below = sorted(child for child in path.iterdir() if child.is_dir() and _has_layout(child))
    except OSError:
        below = []
    above = path.absolute().parents[:3]
    return next((folder for folder in (*below, *above) if _has_layout(folder)), None)
