"""Reading a data file with arbitrary bytes gives records or a DataError, never another error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpt.data.files.annotations import read_captions, read_expressions, read_prompts
from dpt.data.files.hard_negatives import HardNegativeFiles, HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import DataRoot, read_negative_types
from dpt.errors import DataError
from tests.data.files.conftest import SAMPLE

ROOT = DataRoot(SAMPLE)
TELLING = b"[]{}\",:\\'\t\n\r 0-9.eE+truefalsnNaN\xff\x00\xed\xa0\x80"


def all_rows(negatives: HardNegativeFiles) -> None:
    for id_ in negatives.ids:
        negatives.where(id_)
        negatives.row(id_)


def index_and_row(file: Path) -> None:
    """Read the file as the index or as a row of a folder."""
    if file.name != "imgname2txtid.json":
        (file.parent / "imgname2txtid.json").write_text('{"COCO_train2014_000000000005.jpg": [2]}')
        file.rename(file.parent / "00002.json")
    all_rows(HardNegativeFolder(file.parent))


FOLDER = ROOT.hard_negatives("train")
READERS: list[tuple[Path, Callable[[Path], object]]] = [
    (ROOT.expressions("refcoco", "val"), read_expressions),
    (ROOT.captions("val2014"), read_captions),
    (ROOT.prompts, read_prompts),
    (ROOT.negative_types, lambda file: read_negative_types(file, "train")),
    (ROOT.hard_negatives_table("val"), lambda file: all_rows(HardNegativeTable(file))),
    (FOLDER / "imgname2txtid.json", index_and_row),
    (FOLDER / "00002.json", index_and_row),
]


@pytest.mark.parametrize(("file", "read"), READERS, ids=[file.name for file, _ in READERS])
def test_changed_bytes_are_read_or_refused(tmp_path: Path, file: Path, read: Callable[[Path], object]) -> None:
    whole = file.read_bytes()
    rng = np.random.default_rng(len(whole))
    copy = tmp_path / file.name
    refused = 0
    for nth in range(250):
        content = bytearray(whole)
        if nth % 5 == 0:
            content = content[: int(rng.integers(len(content)))]
        for at in rng.integers(max(1, len(content)), size=int(rng.integers(1, 4))):
            new = TELLING[int(rng.integers(len(TELLING)))] if nth % 2 else int(rng.integers(256))
            content[at : at + int(rng.integers(2))] = bytes([new])
        copy.write_bytes(content)
        try:
            read(copy)
        except DataError as fault:
            refused += 1
            assert str(tmp_path) in str(fault) and "\n" not in str(fault)
    assert refused > 20
