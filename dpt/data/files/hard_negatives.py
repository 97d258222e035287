"""Hard negatives in either published form, read one row at a time: a table (TSV), or a folder with a file per caption.

Both hold the same: the rows of the table are numbered by caption id, and the folder has a file for each id.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from dpt.data.files.reading import (
    CAPTIONS_OF_IMAGES,
    DataRoot,
    Row,
    checked_file_name,
    is_whole,
    open_data_file,
    read_json,
    shown,
)
from dpt.errors import DataError, OnDataError, UserError, raise_error
from dpt.files import atomic_folder

COLUMNS = ("filepath", "title", "neg_caption", "neg_image")

LONGEST_FIELD = 2**24


@dataclass(frozen=True)
class HardNegatives:
    """A caption of an image, captions that are false for it, and images that the caption is false for."""

    file_name: str
    title: str
    captions: tuple[str, ...]
    images: tuple[str, ...]

    @property
    def record(self) -> dict[str, str]:
        """As published: the lists are Python literals in strings."""
        return {
            "filepath": self.file_name,
            "title": self.title,
            "neg_caption": repr(list(self.captions)),
            "neg_image": repr(list(self.images)),
        }


def hard_negatives_table(rows: Sequence[HardNegatives]) -> str:
    return "".join("\t".join(line) + "\n" for line in (COLUMNS, *(tuple(row.record.values()) for row in rows)))


def captions_of_images(rows: Sequence[HardNegatives]) -> Mapping[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for id_, row in enumerate(rows):
        ids.setdefault(row.file_name, []).append(id_)
    return ids


class HardNegativeFiles(ABC):
    """Rows by caption id, and the caption ids of each image."""

    ids_of: dict[str, list[int]]
    """By file name."""

    @abstractmethod
    def row(self, id_: int) -> HardNegatives: ...

    @abstractmethod
    def where(self, id_: int) -> str: ...

    @property
    @abstractmethod
    def ids(self) -> Sequence[int]:
        """All caption ids, ascending."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def file_names(self) -> list[str]:
        return list(self.ids_of)

    def another_id(self, name: str, below: Callable[[int], int]) -> int | None:
        """Id of a caption of another image, uniformly; `below(n)` draws from 0 … n - 1."""
        own = sorted(self.ids_of[name])
        left = len(self.ids) - len(own)
        if left < 1:
            return None
        at = below(left)
        for id_ in own:
            at += self.position(id_) <= at
        return self.ids[at]

    def another_image(self, name: str, below: Callable[[int], int]) -> str | None:
        left = len(self.file_names) - 1
        if left < 1:
            return None
        at = below(left)
        return self.file_names[at + (at >= self._order[name])]

    def position(self, id_: int) -> int:
        return bisect_right(self.ids, id_) - 1

    @cached_property
    def _order(self) -> dict[str, int]:
        return {name: nth for nth, name in enumerate(self.file_names)}


class HardNegativeFolder(HardNegativeFiles):
    def __init__(self, folder: Path, on_fault: OnDataError = raise_error) -> None:
        self.folder = folder
        index = folder / CAPTIONS_OF_IMAGES
        self.ids_of = _read_index(index, on_fault)
        self._ids = array("q", sorted(id_ for own in self.ids_of.values() for id_ in own))
        self._name_of = {id_: name for name, own in self.ids_of.items() for id_ in own}
        if not self._ids:
            raise DataError(f"{index} has no usable caption")

    @property
    def ids(self) -> Sequence[int]:
        return self._ids

    def where(self, id_: int) -> str:
        return str(self.folder / f"{id_:05d}.json")

    def row(self, id_: int) -> HardNegatives:
        record = Row(read_json(Path(self.where(id_))), self.where(id_))
        name = self._name_of[id_]
        if "filepath" in record and record.file_name("filepath") != name:
            record.fail(f"'filepath' is {shown(record.content['filepath'])}, but {CAPTIONS_OF_IMAGES} says {name!r}")
        return _hard_negatives(record, name)


class HardNegativeTable(HardNegativeFiles):
    """Keeps the offset of each row. Rows may be quoted as in CSV files, or unquoted as published."""

    def __init__(self, file: Path, on_fault: OnDataError = raise_error) -> None:
        self.file = file
        self.ids_of = {}
        self._starts, self._lines, self._rows = array("q"), array("q"), array("q")
        self._columns: list[str] = []
        with open_data_file(file) as table:
            self._scan(_Lines(table, file), on_fault)
        if not self._starts:
            raise DataError(f"{file} has no usable row")

    @property
    def ids(self) -> Sequence[int]:
        return self._rows

    def where(self, id_: int) -> str:
        return f"{self.file}, row {id_} (line {self._lines[self.position(id_)]})"

    def row(self, id_: int) -> HardNegatives:
        nth = self.position(id_)
        with open_data_file(self.file) as table:
            table.seek(self._starts[nth])
            fields = next(_Lines(table, self.file, self._lines[nth]).rows(), [])
        record = Row(self._record(fields, self.where(id_)), self.where(id_))
        return _hard_negatives(record, record.file_name("filepath"))

    def _scan(self, lines: _Lines, on_fault: OnDataError) -> None:
        rows = lines.rows()
        self._columns = next(rows, [])
        if sorted(self._columns) != sorted(COLUMNS):
            raise DataError(
                f"{self.file}, line 1: expected the columns {', '.join(COLUMNS)}, separated by tabs;"
                f" got {shown(self._columns)}"
            )
        id_ = 0
        while True:
            start, line = lines.position, lines.line + 1
            try:
                fields = next(rows, None)
                if fields is None:
                    return
                where = f"{self.file}, row {id_} (line {line})"
                name = Row(self._record(fields, where), where).file_name("filepath")
                self.ids_of.setdefault(name, []).append(id_)
                for column, value in ((self._starts, start), (self._lines, line), (self._rows, id_)):
                    column.append(value)
            except DataError as fault:
                on_fault(fault)
                rows = lines.rows()
            id_ += 1

    def _record(self, fields: list[str], where: str) -> dict[str, str]:
        if len(fields) != len(self._columns):
            raise DataError(f"{where}: expected {len(self._columns)} fields separated by tabs, got {len(fields)}")
        return dict(zip(self._columns, fields, strict=True))


class _Lines:
    """The decoded and counted lines of an open table."""

    def __init__(self, table: IO[bytes], file: Path, line: int = 1) -> None:
        self.table, self.file, self.line = table, file, line - 1
        self.position = table.tell()

    def __iter__(self) -> Iterator[str]:
        for raw in iter(self.table.readline, b""):
            self.line += 1
            self.position += len(raw)
            try:
                yield raw.decode("utf-8-sig" if self.position == len(raw) else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{self.file}, line {self.line}, is not UTF-8 text") from None

    def rows(self) -> Iterator[list[str]]:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(iter(self), delimiter="\t", strict=True)
        try:
            yield from reader
        except csv.Error as error:
            raise DataError(f"{self.file}, line {self.line}, is not a table row: {error}") from None


def open_hard_negatives(root: DataRoot, part: str) -> HardNegativeFiles:
    """The folder if it exists, otherwise the table."""
    folder, table = root.hard_negatives(part), root.hard_negatives_table(part)
    if folder.is_dir():
        return HardNegativeFolder(folder)
    if table.is_file():
        return HardNegativeTable(table)
    use = "training reads them" if part == "train" else "training validates on them"
    raise DataError(
        f"there are no hard negatives for {part}: {use} from the table {table} or the folder {folder.name}/"
    )


def _hard_negatives(record: Row, file_name: str) -> HardNegatives:
    images = record.texts("neg_image")
    for image in images:
        checked_file_name(image, record.where)
    return HardNegatives(file_name, record.text("title"), record.texts("neg_caption"), images)


def _read_index(file: Path, on_fault: OnDataError) -> dict[str, list[int]]:
    content = read_json(file)
    if not isinstance(content, Mapping):
        raise DataError(f"{file} should hold an object from file names to caption ids, not {shown(content)}")
    index: dict[str, list[int]] = {}
    ids: set[int] = set()
    for name, own in content.items():
        where = f"{file}, {shown(name)}"
        try:
            checked_file_name(name, where)
            if not isinstance(own, list) or not own or not all(is_whole(id_) and 0 <= id_ < 2**62 for id_ in own):
                raise DataError(f"{where}: expected a list of caption ids, got {shown(own)}")
            if len(set(own)) < len(own) or not ids.isdisjoint(own):
                raise DataError(f"{where}: one of the caption ids {shown(own)} occurs twice")
            ids.update(own)
            index[name] = own
        except DataError as fault:
            on_fault(fault)
    return index


def prepare(root: DataRoot, part: str = "train") -> bool:
    """Write the folder from the table; False if it is up to date. A folder with other content is a UserError."""
    table, folder = HardNegativeTable(root.hard_negatives_table(part)), root.hard_negatives(part)
    if folder.is_dir() and any(folder.iterdir()):
        _refuse_if_other(folder, table)
        return False
    with atomic_folder(folder) as work:
        for id_ in tqdm(table.ids, desc=folder.name, unit="caption", leave=False, disable=None):
            _write_json(work / f"{id_:05d}.json", table.row(id_).record)
        _write_json(work / CAPTIONS_OF_IMAGES, table.ids_of)
    return True


def _refuse_if_other(folder: Path, table: HardNegativeTable) -> None:
    problem = _difference(folder, table)
    if problem:
        raise UserError(
            f"{folder} exists and differs from the table ({problem}); nothing was changed: remove it to make it again"
        )


def _difference(folder: Path, table: HardNegativeTable) -> str | None:
    expected = {CAPTIONS_OF_IMAGES, *(f"{id_:05d}.json" for id_ in table.ids)}
    others = sorted(expected ^ {path.name for path in folder.iterdir()})
    if others:
        return f"{others[0]} is {'missing' if others[0] in expected else 'not of the table'}"
    try:
        made = HardNegativeFolder(folder)
        if made.ids_of != table.ids_of:
            return f"{CAPTIONS_OF_IMAGES} gives captions to other images"
        return next((f"{id_:05d}.json differs" for id_ in table.ids if made.row(id_) != table.row(id_)), None)
    except DataError as fault:
        return str(fault)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8", newline="\n")
