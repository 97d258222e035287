"""Everything that is wrong with a data folder, by file: what training would stop at one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dpt.data.files.annotations import (
    Captions,
    ExpressionRow,
    cut_to_picture,
    read_captions,
    read_expressions,
    read_prompts,
)
from dpt.data.files.hard_negatives import HardNegativeFiles, HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import DataRoot, read_negative_types
from dpt.data.images import read_header, read_image
from dpt.data.scenes.published import HARD_NEGATIVES, REC, REC_SPLITS
from dpt.errors import DataError

FIRST_FAULTS = 5


@dataclass
class FileReport:
    """How one file, or one folder of many, was found."""

    name: str
    holds: str = ""
    needed_for: str = ""
    """Set if it is not there."""
    required: bool = True
    faults: int = 0
    first_faults: list[str] = field(default_factory=list)

    def __call__(self, fault: DataError) -> None:
        self.faults += 1
        if len(self.first_faults) < FIRST_FAULTS:
            self.first_faults.append(str(fault))

    @property
    def usable(self) -> bool:
        return not self.faults and not (self.needed_for and self.required)

    def __str__(self) -> str:
        if self.needed_for:
            return f"{'MISSING' if self.required else 'absent':<8}{self.name}: needed for {self.needed_for}"
        lines = [f"{'BROKEN' if self.faults else 'good':<8}{self.name}: {self.holds or 'nothing that can be used'}"]
        lines += [f"          {sentence}" for sentence in self.first_faults]
        if self.faults > len(self.first_faults):
            lines.append(f"          … and {self.faults - len(self.first_faults)} more")
        return "\n".join(lines)


def check(root: DataRoot, decode: bool = False) -> list[FileReport]:
    """`decode` reads the pixels of all pictures too, which finds those that are cut, and takes long."""
    if not root.path.is_dir():
        raise DataError(f"the data folder {root.path} does not exist")
    return list(_Check(root, decode).reports())


class _Check:
    def __init__(self, root: DataRoot, decode: bool) -> None:
        self.root, self.decode = root, decode
        self.named: dict[str, dict[str, str]] = {"train2014": {}, "val2014": {}}
        """Pictures, and where each was named first."""
        self.boxes: dict[str, list[ExpressionRow]] = {}
        self.captions: Captions | None = None

    def reports(self) -> Iterator[FileReport]:
        for split in self.named:
            yield self._captions(split)
        negatives, report = self._train_negatives()
        yield from report
        yield from self._expressions(negatives)
        yield self._table("val")
        yield self._prompts()
        if self.root.negative_types.exists():
            yield self._negative_types()
        for split in self.named:
            yield self._pictures(split)

    def _report(self, path: Path) -> FileReport:
        return FileReport(path.relative_to(self.root.path).as_posix())

    def _read(self, path: Path, read: Callable[[FileReport], str], missing: str, required: bool) -> FileReport:
        """`read` returns what the file holds."""
        report = self._report(path)
        if not path.exists():
            report.needed_for, report.required = missing, required
            return report
        try:
            report.holds = read(report)
        except DataError as fault:
            report(fault)
        return report

    def _captions(self, split: str) -> FileReport:
        def read(report: FileReport) -> str:
            captions = read_captions(self.root.captions(split), report)
            if split == "train2014":
                self.captions = captions
            texts = sum(map(len, captions.texts.values()))
            return f"{_counted(texts, 'caption')} of {_counted(len(captions.file_names), 'picture')}"

        return self._read(self.root.captions(split), read, f"captions of {split}", required=False)

    def _expressions(self, negatives: HardNegativeFiles | None) -> Iterator[FileReport]:
        folder = self.root.path / REC
        training = sorted(folder.glob("finetune_*_train.json")) or [self.root.expressions("refall", "train")]
        for file in training:
            yield self._expression_file(file, "training", True, negatives)
        for dataset, splits in REC_SPLITS.items():
            for split in splits:
                file = self.root.expressions(dataset, split)
                yield self._expression_file(file, f"{dataset} {split} scores", False, None)

    def _expression_file(
        self, file: Path, missing: str, required: bool, negatives: HardNegativeFiles | None
    ) -> FileReport:
        def read(report: FileReport) -> str:
            found = read_expressions(file, report)
            for one in found:
                self._name("train2014", [one.file_name], one.where)
                self.boxes.setdefault(one.file_name, []).append(one)
                if negatives is not None and one.file_name not in negatives.ids_of:
                    report(DataError(f"{one.where}: no caption of {one.file_name} has hard negatives"))
                self._compare_with_captions(one, report)
            pictures = {one.file_name for one in found}
            return f"{_counted(len(found), 'expression')} of {_counted(len(pictures), 'picture')}"

        return self._read(file, read, missing, required)

    def _compare_with_captions(self, one: ExpressionRow, report: FileReport) -> None:
        if self.captions is not None and one.original_id is not None:
            name = self.captions.file_names.get(one.original_id, one.file_name)
            if name != one.file_name:
                report(DataError(f"{one.where}: the picture {one.original_id} is {one.file_name} here, {name} in COCO"))

    def _train_negatives(self) -> tuple[HardNegativeFiles | None, list[FileReport]]:
        """The form that training would use, and reports on those that are there."""
        folder = self.root.hard_negatives("train")
        opened: list[HardNegativeFiles] = []

        def read(report: FileReport) -> str:
            opened.append(HardNegativeFolder(folder, report))
            return self._rows(opened[-1], "train2014", report)

        table = self._table("train", opened)
        by_caption = self._read(folder, read, "training (`dpt data prepare` makes it of the table)", required=False)
        table.required = bool(by_caption.needed_for)
        if len(opened) == 2 and opened[0].ids_of != opened[1].ids_of:
            by_caption(DataError(f"{folder} does not give its captions to the same pictures as {folder.name}.tsv"))
        return (opened[-1] if opened else None), [by_caption, table]

    def _table(self, part: str, opened: list[HardNegativeFiles] | None = None) -> FileReport:
        file = self.root.hard_negatives_table(part)

        def read(report: FileReport) -> str:
            table = HardNegativeTable(file, report)
            if opened is not None:
                opened.append(table)
            return self._rows(table, f"{part}2014", report)

        either = f"training, unless the folder {HARD_NEGATIVES.format(split=part)} is there"
        return self._read(file, read, either if part == "train" else "matching scores", required=False)

    def _rows(self, negatives: HardNegativeFiles, split: str, report: FileReport) -> str:
        captions = images = 0
        for id_ in tqdm(negatives.ids, desc=report.name[-40:], unit="caption", leave=False, disable=None):
            try:
                row = negatives.row(id_)
            except DataError as fault:
                report(fault)
                continue
            self._name(split, [row.file_name, *row.images], negatives.where(id_))
            captions, images = captions + len(row.captions), images + len(row.images)
        false = f"{_counted(captions, 'false caption')} and {_counted(images, 'false picture')}"
        return f"{_counted(len(negatives), 'caption')} with {false}"

    def _prompts(self) -> FileReport:
        def read(report: FileReport) -> str:
            return _counted(len(read_prompts(self.root.prompts, report)), "prompt")

        return self._read(self.root.prompts, read, "alignment scores", required=False)

    def _negative_types(self) -> FileReport:
        def read(report: FileReport) -> str:
            known = [len(read_negative_types(self.root.negative_types, part)) for part in ("train", "val")]
            return f"types of the negatives of {known[0]} captions for training, {known[1]} for validation"

        return self._read(self.root.negative_types, read, "", required=False)

    def _name(self, split: str, file_names: Iterable[str], where: str) -> None:
        for name in file_names:
            self.named[split].setdefault(name, where)

    def _pictures(self, split: str) -> FileReport:
        folder, named = self.root.images(split), self.named[split]

        def read(report: FileReport) -> str:
            here = {Path(at, file).relative_to(folder).as_posix() for at, _, files in os.walk(folder) for file in files}
            for name, where in tqdm(named.items(), desc=split, unit="picture", leave=False, disable=None):
                if name not in here:
                    report(DataError(f"{folder / name} is missing; {where} names it"))
                    continue
                try:
                    self._picture(folder, name, self.boxes.get(name, []) if split == "train2014" else [])
                except DataError as fault:
                    report(fault)
            how = "all of their pixels read" if self.decode else "only their headers read (--decode reads them whole)"
            return f"{_counted(len(here), 'file')}, {len(named)} of them needed, {how}"

        return self._read(folder, read, f"{len(named)} pictures that are named", required=bool(named))

    def _picture(self, folder: Path, name: str, referred: list[ExpressionRow]) -> None:
        path = folder / name
        header = read_image(path, folder)[1] if self.decode else read_header(path, folder)
        for one in referred:
            for box in one.boxes:
                cut_to_picture(header.upright(box.corners, one.size), header.size, one.where)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
