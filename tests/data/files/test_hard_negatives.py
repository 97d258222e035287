from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpt.data.files.hard_negatives import (
    HardNegativeFolder,
    HardNegatives,
    HardNegativeTable,
    hard_negatives_table,
    open_hard_negatives,
)
from dpt.data.files.reading import DataRoot
from dpt.errors import DataError

HEADER = "filepath\ttitle\tneg_caption\tneg_image\n"
ROW = "a.jpg\ta cup\t['a mug', \"a dog's cup\"]\t['b.jpg']\n"


def table(tmp_path: Path, text: str | bytes) -> HardNegativeTable:
    file = tmp_path / "t.tsv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return HardNegativeTable(file)


def test_folder_and_table_give_the_same_rows(exported: DataRoot) -> None:
    by_caption = HardNegativeFolder(exported.hard_negatives("train"))
    rows = HardNegativeTable(exported.hard_negatives_table("train"))
    assert len(by_caption) == len(rows) == 24
    assert by_caption.ids_of == rows.ids_of and list(by_caption.ids) == list(rows.ids)
    assert [by_caption.row(id_) for id_ in rows.ids] == [rows.row(id_) for id_ in rows.ids]


def test_folder_is_preferred_to_the_table(sample: DataRoot) -> None:
    assert isinstance(open_hard_negatives(sample, "train"), HardNegativeFolder)
    shutil.rmtree(sample.hard_negatives("train"))
    assert isinstance(open_hard_negatives(sample, "train"), HardNegativeTable)
    sample.hard_negatives_table("train").unlink()
    with pytest.raises(DataError, match="no hard negatives for train: training reads them from"):
        open_hard_negatives(sample, "train")


def test_quoted_rows_are_read(tmp_path: Path) -> None:
    """Tables saved by spreadsheets or pandas have quotes, and captions of several lines."""
    rows = [
        HardNegatives("a.jpg", 'a "red" cup', ("it's", 'a "cup"', "tab\there"), ("b.jpg",)),
        HardNegatives("b.jpg", '"no" entry\nsign', ("naïve",), ("a.jpg",)),
        HardNegatives("a.jpg", "a cup", ("a mug",), ("b.jpg",)),
    ]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\r\n")
    writer.writerow(["filepath", "title", "neg_caption", "neg_image"])
    writer.writerows(row.record.values() for row in rows)
    read = table(tmp_path, "\ufeff" + text.getvalue())
    assert [read.row(id_) for id_ in read.ids] == rows
    assert [read.row(id_) for id_ in reversed(read.ids)] == rows[::-1]
    assert read.ids_of == {"a.jpg": [0, 2], "b.jpg": [1]}
    assert "row 2 (line 5)" in read.where(2)
    plain = table(tmp_path, hard_negatives_table([rows[2]]))
    assert plain.row(0) == rows[2]


def test_columns_may_be_in_any_order(tmp_path: Path) -> None:
    assert table(tmp_path, "title\tfilepath\tneg_image\tneg_caption\nt\ta.jpg\t['b']\t['c']\n").row(0) == HardNegatives(
        "a.jpg", "t", ("c",), ("b",)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns filepath, title"),
        ("a\tb\n", "line 1: expected the columns"),
        (HEADER, "no usable row"),
        (HEADER + ROW + "a.jpg\ta cup\n", r"row 1 \(line 3\): expected 4 fields separated by tabs, got 2"),
        (HEADER + ROW + ROW[:20], r"row 1 \(line 3\): expected 4 fields"),
        (HEADER + "\n" + ROW, r"row 0 \(line 2\): expected 4 fields"),
        (HEADER + "../a.jpg" + ROW[5:], r"row 0 \(line 2\): '../a.jpg' is not a file name"),
        (HEADER + ROW + '"' + ROW, "line 3, is not a table row"),
        (HEADER.encode() + b"\xff" + ROW.encode(), "line 2, is not UTF-8"),
    ],
)
def test_invalid_tables_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        table(tmp_path, text)
    assert "t.tsv" in str(caught.value) and "\n" not in str(caught.value)


ROWS: list[tuple[str, Any, str]] = [
    ("title", " ", "'title' is empty"),
    ("neg_caption", "['a' 'b']", r"'neg_caption' is not a list of quoted strings: expected '\]' at character 5"),
    ("neg_caption", "a mug", "'neg_caption' is not a list"),
    ("neg_caption", "['a mug", "not closed at character 7"),
    ("neg_caption", "[]", "'neg_caption' should be a list of non-empty texts"),
    ("neg_caption", "['']", "'neg_caption' should be a list of non-empty texts"),
    ("neg_image", "['../../b.jpg']", "not a file name under the data folder"),
    ("neg_image", "[1]", "'neg_image' is not a list of quoted strings"),
]


@pytest.mark.parametrize(("key", "value", "message"), ROWS)
def test_invalid_rows_are_refused(tmp_path: Path, key: str, value: str, message: str) -> None:
    good = {"filepath": "a.jpg", "title": "a cup", "neg_caption": "['a mug']", "neg_image": "['b.jpg']"}
    bad = {**good, key: value}
    rows = table(tmp_path, HEADER + ROW + "\t".join(bad.values()) + "\n")
    with pytest.raises(DataError, match=r"t\.tsv, row 1 \(line 3\): .*" + message):
        rows.row(1)
    by_caption = write_folder(tmp_path / "f", {"a.jpg": [0, 1]}, good, bad)
    with pytest.raises(DataError, match=r"00001\.json: .*" + message):
        HardNegativeFolder(by_caption).row(1)


def write_folder(folder: Path, index: Any, *records: Any) -> Path:
    folder.mkdir()
    (folder / "imgname2txtid.json").write_text(json.dumps(index))
    for id_, record in enumerate(records):
        (folder / f"{id_:05d}.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "should hold an object from file names"),
        ({}, "has no usable caption"),
        ({"a.jpg": []}, "'a.jpg': expected a list of caption ids"),
        ({"a.jpg": [0, "1"]}, "'a.jpg': expected a list of caption ids"),
        ({"a.jpg": [True]}, "expected a list of caption ids"),
        ({"a.jpg": [-1]}, "expected a list of caption ids"),
        ({"a.jpg": [0], "b.jpg": [1, 0]}, r"'b.jpg': one of the caption ids \[1, 0\] occurs twice"),
        ({"../a.jpg": [0]}, "not a file name under"),
    ],
)
def test_invalid_indices_are_refused(tmp_path: Path, index: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"imgname2txtid\.json.*{message}"):
        HardNegativeFolder(write_folder(tmp_path / "f", index))


def test_files_that_contradict_the_index_are_refused(tmp_path: Path) -> None:
    record = {"filepath": "a.jpg", "title": "a cup", "neg_caption": ["a mug"], "neg_image": "['b.jpg']"}
    folder = HardNegativeFolder(write_folder(tmp_path / "f", {"b.jpg": [0], "a.jpg": [1, 2]}, record, record))
    assert folder.row(1).captions == ("a mug",), "JSON lists are read too"
    with pytest.raises(DataError, match=r"00000\.json: 'filepath' is 'a\.jpg', but imgname2txtid\.json says 'b\.jpg'"):
        folder.row(0)
    with pytest.raises(DataError, match=r"there is no file .*00002\.json"):
        folder.row(2)


def test_another_id_draws_every_caption_of_other_images(exported: DataRoot) -> None:
    rows = HardNegativeTable(exported.hard_negatives_table("train"))
    for name, own_ids in rows.ids_of.items():
        drawn = [rows.another_id(name, lambda n, at=at: at) for at in range(len(rows) - len(own_ids))]  # type: ignore[misc]
        assert drawn == [id_ for id_ in rows.ids if id_ not in own_ids]
        images = [rows.another_image(name, lambda n, at=at: at) for at in range(len(rows.ids_of) - 1)]  # type: ignore[misc]
        assert images == [other for other in rows.ids_of if other != name]


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    record = {"title": "a cup", "neg_caption": "['a mug']", "neg_image": "['b.jpg']"}
    folder = write_folder(tmp_path / "f", {"a.jpg": [5], "b.jpg": [90_000, 3]})
    (folder / "90000.json").write_text(json.dumps(record))
    rows = HardNegativeFolder(folder)
    assert list(rows.ids) == [3, 5, 90_000] and rows.row(90_000).file_name == "b.jpg"
    assert rows.another_id("b.jpg", lambda n: n - 1) == 5
    assert rows.another_id("a.jpg", lambda n: n - 1) == 90_000
    alone = HardNegativeFolder(write_folder(tmp_path / "g", {"a.jpg": [0]}, record))
    assert alone.another_id("a.jpg", lambda n: 0) is None and alone.another_image("a.jpg", lambda n: 0) is None
