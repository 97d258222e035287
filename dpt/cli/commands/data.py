"""`dpt data …`: check a data folder before training on it, and prepare it once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class DataCheckOptions:
    """List what is missing or broken in a data folder. Exit code 2 if training would refuse it."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/, or images with metadata.jsonl."""
    dataset_name: str = "refall"
    """Referring expressions to train on, as in training."""
    combine_datasets_val: tuple[str, ...] = ("refcoco", "refcoco+", "refcocog")
    """Referring expressions to validate on, as in training."""
    dataset_name_val: str | None = None
    """Validate on this set of expressions instead of all of them combined, as in training."""
    decode: bool = False
    """Also decode every image that training uses. This finds truncated files and takes long."""


@dataclass(frozen=True)
class DataPrepareOptions:
    """Split the table of hard negatives into one small file per caption, which training reads faster."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/."""


def check(options: DataCheckOptions) -> None:
    from dpt.data.files import check as files
    from dpt.data.files.root import DataRoot
    from dpt.data.files.source import FileSelection
    from dpt.data.folder import is_picture_folder
    from dpt.errors import fail

    if is_picture_folder(options.root):
        check_picture_folder(options)
        return
    chosen = (options.dataset_name_val,) if options.dataset_name_val else options.combine_datasets_val
    result = files.check(DataRoot.open(options.root), FileSelection(options.dataset_name, chosen), options.decode)
    print("\n".join(map(str, result.reports)))
    if result.refusal is not None:
        fail(f"{options.root} cannot be used: {result.refusal}")
    if result.bad:
        names = ", ".join(report.name for report in result.bad)
        fail(f"{options.root} cannot be used: {len(result.bad)} of {len(result.reports)} parts are broken: {names}")
    print(f"{options.root} can be used")


def check_picture_folder(options: DataCheckOptions) -> None:
    from dpt.data.folder import read_picture_folder
    from dpt.data.images import read_header, read_image

    rows = read_picture_folder(options.root)
    for name in dict.fromkeys(row.file_name for row in rows):
        (read_image if options.decode else read_header)(options.root / name, options.root)
    print(f"{options.root} can be used with --plain_lora: {len(rows)} captions of images")
    print(f"for stage 1 and stage 2: dpt data from-folder {options.root} --out FOLDER")


def prepare(options: DataPrepareOptions) -> None:
    from dpt.data.files.hard_negatives import prepare as prepare_folder
    from dpt.data.files.root import DataRoot

    root = DataRoot.open(options.root)
    written = prepare_folder(root)
    folder = root.hard_negatives("train")
    print(f"wrote {folder}" if written else f"{folder} is up to date")
