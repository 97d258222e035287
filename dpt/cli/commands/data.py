"""`dpt data …`: whether a data folder can be used, and what has to be made of it once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class CheckOptions:
    """Say what of a data folder is missing or broken, by file. Exit code 2 if it cannot be trained on."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/."""
    decode: bool = False
    """Also read the pixels of every picture that is named: finds those that are cut, and takes long."""


@dataclass(frozen=True)
class PrepareOptions:
    """Make the folder of hard negatives by caption of the table, so that training reads one small file at a time."""

    root: tyro.conf.Positional[Path]
    """The folder that holds coco/, ReC/ and ITM/."""


def check(options: CheckOptions) -> None:
    from dpt.data.files.check import check as check_folder
    from dpt.data.files.root import DataRoot
    from dpt.errors import fail

    reports = check_folder(DataRoot(options.root), options.decode)
    print("\n".join(map(str, reports)))
    bad = [report.name for report in reports if not report.usable]
    if bad:
        fail(f"{options.root} cannot be used: {len(bad)} of {len(reports)} parts are missing or broken, first {bad[0]}")
    print(f"{options.root} can be used")


def prepare(options: PrepareOptions) -> None:
    from dpt.data.files.hard_negatives import prepare as prepare_folder
    from dpt.data.files.root import DataRoot

    root = DataRoot(options.root)
    written = prepare_folder(root)
    folder = root.hard_negatives("train")
    print(f"wrote {folder}" if written else f"{folder} is there already, as it would be written")
