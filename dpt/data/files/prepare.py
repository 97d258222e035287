"""The folder of hard negatives by caption, made of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpt.data.faults import DataFault
from dpt.data.files.hard_negatives import HardNegativeFolder, HardNegativeTable
from dpt.data.files.root import DataRoot
from dpt.data.scenes.published import CAPTIONS_OF_IMAGES
from dpt.errors import UserError
from dpt.folders import whole_folder


def prepare(root: DataRoot, part: str = "train") -> bool:
    """Whether anything had to be written. A folder that says something else than the table is not touched."""
    if not root.path.is_dir():
        raise DataFault(f"the data folder {root.path} does not exist")
    table, folder = HardNegativeTable(root.hard_negatives_table(part)), root.hard_negatives(part)
    if folder.is_dir() and any(folder.iterdir()):
        _refuse_if_other(folder, table)
        return False
    with whole_folder(folder) as work:
        for id_ in tqdm(table.ids, desc=folder.name, unit="caption", leave=False, disable=None):
            _write(work / f"{id_:05d}.json", table.row(id_).record)
        _write(work / CAPTIONS_OF_IMAGES, table.ids_of)
    return True


def _refuse_if_other(folder: Path, table: HardNegativeTable) -> None:
    problem = _difference(folder, table)
    if problem:
        raise UserError(f"{folder} is there already and is not what would be written ({problem}); nothing was changed")


def _difference(folder: Path, table: HardNegativeTable) -> str | None:
    expected = {CAPTIONS_OF_IMAGES, *(f"{id_:05d}.json" for id_ in table.ids)}
    others = sorted(expected ^ {path.name for path in folder.iterdir()})
    if others:
        return f"{others[0]} is {'missing' if others[0] in expected else 'not of the table'}"
    try:
        made = HardNegativeFolder(folder)
        if made.ids_of != table.ids_of:
            return f"{CAPTIONS_OF_IMAGES} gives captions to other pictures"
        return next((f"{id_:05d}.json differs" for id_ in table.ids if made.row(id_) != table.row(id_)), None)
    except DataFault as fault:
        return str(fault)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8", newline="\n")
