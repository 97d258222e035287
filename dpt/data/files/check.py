"""`dpt data check`: the faults of a data folder by file, and whether training can use it.

The check opens the data with the code that training uses, then reads everything that training would read later.
"""

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
from dpt.data.files.reading import REC, REC_SPLITS, DataRoot, read_negative_types
from dpt.data.files.source import FileSelection, open_training_data
from dpt.data.images import Framing, read_header, read_image
from dpt.errors import DataError, OnDataError

SHOWN_FAULTS = 5


@dataclass
class FileReport:
    """The state of one file, or of one folder of many."""

    name: str
    use: str
    """What reads it."""
    required: bool
    """Whether training reads it: only then do its faults matter to the verdict."""
    present: bool = True
    content: str = ""
    faults: int = 0
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Oddities that do not affect training."""

    def fault(self, fault: DataError) -> None:
        self.faults += 1
        if len(self.shown) < SHOWN_FAULTS:
            self.shown.append(str(fault))

    def note(self, sentence: str) -> None:
        if len(self.notes) < SHOWN_FAULTS:
            self.notes.append(sentence)

    @property
    def usable(self) -> bool:
        return not self.required or (self.present and not self.faults)

    @property
    def status(self) -> str:
        if not self.present:
            return "MISSING" if self.required else "-"
        if self.faults:
            return "BROKEN" if self.required else "unused"
        return "ok"

    def __str__(self) -> str:
        if not self.present:
            why = f"needed for {self.use}" if self.required else f"absent; used only by {self.use}"
            return f"{self.status:<8}{self.name}: {why}"
        content = self.content or "nothing usable"
        lines = [f"{self.status:<8}{self.name}: {content}"]
        if self.status == "unused":
            lines[0] += f"; broken, but used only by {self.use}"
        lines += [f"          {sentence}" for sentence in self.shown]
        if self.faults > len(self.shown):
            lines.append(f"          … and {self.faults - len(self.shown)} more")
        lines += [f"          note: {sentence}" for sentence in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class CheckResult:
    reports: list[FileReport]
    refusal: str | None
    """The error with which training refuses the folder."""

    @property
    def bad(self) -> list[FileReport]:
        return [report for report in self.reports if not report.usable]

    @property
    def usable(self) -> bool:
        return self.refusal is None and not self.bad


def check(root: DataRoot, selection: FileSelection | None = None, decode: bool = False) -> CheckResult:
    """`decode` also reads the pixels of all images, which finds truncated files and takes long."""
    selection = selection or FileSelection()
    try:
        open_training_data(root, selection, Framing(64), seed=0)
        refusal = None
    except DataError as error:
        refusal = str(error)
    return CheckResult(list(_Check(root, selection, decode).reports()), refusal)


class _Check:
    def __init__(self, root: DataRoot, selection: FileSelection, decode: bool) -> None:
        self.root, self.selection, self.decode = root, selection, decode
        self.named: dict[str, dict[str, str]] = {"train2014": {}, "val2014": {}}
        """Images that training reads, and where each is named first."""
        self.boxes: dict[str, list[ExpressionRow]] = {}
        self.captions: Captions | None = None

    def reports(self) -> Iterator[FileReport]:
        for split in self.named:
            yield self._captions(split)
        negatives, reports = self._hard_negatives("train")
        yield from reports
        if self.root.has_expressions:
            yield from self._expressions(negatives)
        else:
            yield FileReport(REC.parts[0], "grounding; without it training is matching only", False, present=False)
        yield from self._hard_negatives("val")[1]
        yield self._prompts()
        if self.root.negative_types.exists():
            yield self._negative_types()
        for split in self.named:
            yield self._pictures(split)

    def _read(self, path: Path, read: Callable[[FileReport], str], use: str, required: bool) -> FileReport:
        """`read` returns what the file holds."""
        report = FileReport(path.relative_to(self.root.path).as_posix(), use, required)
        if not path.exists():
            report.present = False
            return report
        try:
            report.content = read(report)
        except DataError as fault:
            report.fault(fault)
        return report

    def _captions(self, split: str) -> FileReport:
        def read(report: FileReport) -> str:
            captions = read_captions(self.root.captions(split), report.fault)
            if split == "train2014":
                self.captions = captions
            texts = sum(map(len, captions.texts.values()))
            return f"{_counted(texts, 'caption')} of {_counted(len(captions.file_names), 'image')}"

        return self._read(self.root.captions(split), read, f"a comparison with the captions of {split}", False)

    def _expressions(self, negatives: HardNegativeFiles | None) -> Iterator[FileReport]:
        chosen = self.root.expressions(self.selection.dataset, "train")
        for file in sorted({chosen, *(self.root.path / REC).glob("finetune_*_train.json")}):
            dataset = file.name.removeprefix("finetune_").removesuffix("_train.json")
            use = "training" if file == chosen else f"training with --dataset_name {dataset}"
            yield self._expression_file(file, use, file == chosen, negatives)
        validated = [self.root.expressions(name, "val") for name in self.selection.validation]
        for dataset, splits in REC_SPLITS.items():
            validated += [file for split in splits if (file := self.root.expressions(dataset, split)) not in validated]
        for file in validated:
            required = file in validated[: len(self.selection.validation)]
            use = "validation" if required else "dpt probe"
            yield self._expression_file(file, use, required, None)

    def _expression_file(self, file: Path, use: str, required: bool, negatives: HardNegativeFiles | None) -> FileReport:
        def read(report: FileReport) -> str:
            rows = read_expressions(file, report.fault)
            for row in rows:
                if required:
                    self._name("train2014", [row.file_name], row.where)
                    self.boxes.setdefault(row.file_name, []).append(row)
                if negatives is not None and row.file_name not in negatives.ids_of:
                    report.fault(DataError(f"{row.where}: no caption of {row.file_name} has hard negatives"))
                self._compare_with_captions(row, report)
            pictures = {row.file_name for row in rows}
            return f"{_counted(len(rows), 'expression')} of {_counted(len(pictures), 'image')}"

        report = self._read(file, read, use, required)
        if required and not report.present:
            flag = "--dataset_name" if use == "training" else "--dataset_name_val"
            report.use += f" ({flag} chooses another)"
        return report

    def _compare_with_captions(self, row: ExpressionRow, report: FileReport) -> None:
        if self.captions is not None and row.original_id is not None:
            name = self.captions.file_names.get(row.original_id, row.file_name)
            if name != row.file_name:
                report.note(f"{row.where}: the image {row.original_id} is {row.file_name} here, {name} in COCO")

    def _hard_negatives(self, part: str) -> tuple[HardNegativeFiles | None, list[FileReport]]:
        """Reports on both forms, and the form that training reads: the folder if it is there, or else the table."""
        folder, table = self.root.hard_negatives(part), self.root.hard_negatives_table(part)
        opened: dict[Path, HardNegativeFiles] = {}

        def read(path: Path, form: Callable[[Path, OnDataError], HardNegativeFiles]) -> FileReport:
            def open_and_count(report: FileReport) -> str:
                opened[path] = form(path, report.fault)
                return self._rows(opened[path], f"{part}2014" if required else None, report)

            required = (path == folder) == folder.is_dir()
            use = "training" if part == "train" else "validation"
            other = "the folder that `dpt data prepare` makes of it" if path == table else "the table of the same name"
            return self._read(path, open_and_count, use if required else f"{use} without {other}", required)

        reports = [read(folder, HardNegativeFolder), read(table, HardNegativeTable)]
        if len(opened) == 2 and opened[folder].ids_of != opened[table].ids_of:
            reports[0].note(f"{folder} does not give its captions to the same images as {table.name}")
        if part == "val":  # `dpt data prepare` does not write this folder, so its absence is normal
            reports = [report for report in reports if report.present or report.required]
        return opened.get(folder, opened.get(table)), reports

    def _rows(self, negatives: HardNegativeFiles, split: str | None, report: FileReport) -> str:
        captions = images = 0
        for id_ in tqdm(negatives.ids, desc=report.name[-40:], unit="caption", leave=False, disable=None):
            try:
                row = negatives.row(id_)
            except DataError as fault:
                report.fault(fault)
                continue
            if split is not None:
                self._name(split, [row.file_name, *row.images], negatives.where(id_))
            captions, images = captions + len(row.captions), images + len(row.images)
        false = f"{_counted(captions, 'false caption')} and {_counted(images, 'false image')}"
        return f"{_counted(len(negatives), 'caption')} with {false}"

    def _prompts(self) -> FileReport:
        def read(report: FileReport) -> str:
            return _counted(len(read_prompts(self.root.prompts, report.fault)), "prompt")

        return self._read(self.root.prompts, read, "alignment scores", required=False)

    def _negative_types(self) -> FileReport:
        def read(report: FileReport) -> str:
            train, val = (len(read_negative_types(self.root.negative_types, part)) for part in ("train", "val"))
            return f"types of the negatives of {train} captions for training, {val} for validation"

        return self._read(self.root.negative_types, read, "training", required=True)

    def _name(self, split: str, file_names: Iterable[str], where: str) -> None:
        for name in file_names:
            self.named[split].setdefault(name, where)

    def _pictures(self, split: str) -> FileReport:
        folder, named = self.root.images(split), self.named[split]

        def read(report: FileReport) -> str:
            files = {
                Path(at, file).relative_to(folder).as_posix() for at, _, names in os.walk(folder) for file in names
            }
            for name, where in tqdm(named.items(), desc=split, unit="image", leave=False, disable=None):
                if name not in files:
                    report.fault(DataError(f"{folder / name} is missing; {where} names it"))
                    continue
                try:
                    self._picture(folder, name, self.boxes.get(name, []) if split == "train2014" else [])
                except DataError as fault:
                    report.fault(fault)
            depth = "pixels read" if self.decode else "only their headers read (--decode reads the pixels)"
            return f"{_counted(len(files), 'file')}, {len(named)} of them used, {depth}"

        return self._read(folder, read, f"the {len(named)} images that the annotations name", required=bool(named))

    def _picture(self, folder: Path, name: str, expressions: list[ExpressionRow]) -> None:
        path = folder / name
        header = read_image(path, folder)[1] if self.decode else read_header(path, folder)
        for row in expressions:
            for box in row.boxes:
                cut_to_picture(header.upright(box.corners, row.size), header.size, row.where)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
