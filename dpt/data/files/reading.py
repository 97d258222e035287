"""A data folder in the published layout: where its files lie, and typed access that names the file of every fault."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, TypeVar

from dpt.errors import DataError, UserError
from dpt.files import sha256
from dpt.untrusted import open_regular, parse_json, string_list

T = TypeVar("T")


LARGEST = 2**31
"""Bytes of a file with annotations: several times the largest that is published."""


def open_data_file(file: Path) -> IO[bytes]:
    """A regular file that lies in its folder, links followed: no device, no pipe, no link that leads elsewhere."""
    try:
        return open_regular(file, LARGEST, within=file.parent)
    except FileNotFoundError:
        raise DataError(f"there is no file {file}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise DataError(str(error)) from None


def read_bytes(file: Path) -> bytes:
    with open_data_file(file) as stream:
        return stream.read()


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each with its place for error messages. Only "\\n" ends a line."""
    for number, line in enumerate(read_bytes(file).removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        where = f"{file}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{where}, is not UTF-8 text") from None
        if text.strip():
            yield where, text


def parse_line(text: str, where: str) -> Row:
    """A line of a JSONL file."""
    try:
        return Row(parse_json(text, surrogates=True, constant=_refuse_constant), where)
    except ValueError as error:
        raise DataError(f"{where}, is not valid JSON: {error}") from None


def read_json(file: Path) -> Any:
    content = read_bytes(file)
    try:
        return parse_json(content.decode("utf-8-sig"), surrogates=True, constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text, at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}, is not valid JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


class Row:
    """A record of a file, and its place for error messages."""

    def __init__(self, content: Any, where: str) -> None:
        self.where = where
        if not isinstance(content, dict):
            self.fail(f"expected an object, got {shown(content)}")
        self.content: Mapping[str, Any] = content

    def fail(self, what: str) -> NoReturn:
        raise DataError(f"{self.where}: {what}")

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def get(self, key: str, kind: type[T]) -> T:
        if key not in self.content:
            self.fail(f"there is no {key!r}")
        value = self.content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
            self.fail(f"{key!r} should be {names.get(kind, kind.__name__)}, not {shown(value)}")
        return value

    def text(self, key: str) -> str:
        text = self.get(key, str)
        if not text.strip():
            self.fail(f"{key!r} is empty")
        if not is_text(text):
            self.fail(f"{key!r} holds half a character: {shown(text)}")
        return text

    def file_name(self, key: str) -> str:
        return checked_file_name(self.text(key), self.where)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or the published form: a string that holds a Python list."""
        value = self.content.get(key)
        if not isinstance(value, list):
            try:
                value = string_list(self.get(key, str))
            except ValueError as error:
                self.fail(f"{key!r} is not a list of quoted strings: {error}")
        if not value or any(not isinstance(text, str) or not text.strip() or not is_text(text) for text in value):
            self.fail(f"{key!r} should be a list of non-empty texts, not {shown(value)}")
        return tuple(value)

    def numbers(self, key: str, n: int) -> tuple[float, ...]:
        value = self.get(key, list)
        if len(value) != n or not all(is_number(number) for number in value):
            self.fail(f"{key!r} should be {n} numbers, not {shown(value)}")
        return tuple(float(number) for number in value)


def is_text(text: str) -> bool:
    """Whether it can be encoded as UTF-8: JSON can hold lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15 if isinstance(value, int) else isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


LONGEST_NAME, LONGEST_PATH = 255, 2000
"""Bytes that file systems take for a name, and for a path with room for the data folder."""


def checked_file_name(name: str, where: str) -> str:
    """A relative path that cannot leave its folder."""
    path = PurePosixPath(name)
    lengths = [len(part.encode(errors="replace")) for part in path.parts]
    if max(lengths, default=0) > LONGEST_NAME or sum(lengths) > LONGEST_PATH:
        raise DataError(f"{where}: {shown(name)} is too long for the name of a file")
    if path.is_absolute() or ".." in path.parts or not path.name or set(name) & set("\\:") or not name.isprintable():
        raise DataError(f"{where}: {shown(name)} is not a file name under the data folder")
    return name


@dataclass(frozen=True)
class NegativeTypes:
    captions: tuple[str, ...]
    images: tuple[str, ...]


def read_negative_types(file: Path, part: str) -> dict[int, NegativeTypes]:
    """By caption id; empty if there is no such file."""
    if not file.exists():
        return {}
    types: dict[int, NegativeTypes] = {}
    for where, line in read_lines(file):
        row = parse_line(line, where)
        if row.text("part") == part:
            own = Row(row.get("types", dict), where)
            types[row.get("id", int)] = NegativeTypes(own.texts("neg_caption"), own.texts("neg_image"))
    return types


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
