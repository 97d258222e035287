from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpt.data.files.hard_negatives import prepare
from dpt.data.files.reading import DataRoot
from dpt.errors import DataError, UserError
from tests.data.files.conftest import SAMPLE


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepare_writes_the_same_files_as_an_export(sample: DataRoot) -> None:
    folder = sample.hard_negatives("train")
    shutil.rmtree(folder)
    assert prepare(sample)
    assert contents(folder) == contents(DataRoot(SAMPLE).hard_negatives("train"))
    assert not prepare(sample), "nothing to do the second time"


def test_existing_files_with_equal_content_are_left_alone(sample: DataRoot) -> None:
    file = sample.hard_negatives("train") / "00002.json"
    file.write_text(file.read_text().replace(", ", ",  ").replace('{"', '{ "'))
    before = contents(file.parent)
    assert not prepare(sample)
    assert contents(file.parent) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("00002.json", '{"title": "x", "neg_caption": "[\'y\']", "neg_image": "[\'z\']"}', "00002.json differs"),
        ("00002.json", "{", "00002.json, line 1, is not valid JSON"),
        ("00002.json", None, "00002.json is missing"),
        ("00009.json", "{}", "00009.json is not of the table"),
        ("notes.txt", "mine", "notes.txt is not of the table"),
        ("imgname2txtid.json", '{"a.jpg": [0, 1, 2, 3, 4, 5, 6, 7]}', "gives captions to other images"),
    ],
)
def test_folder_with_other_content_is_not_changed(
    sample: DataRoot, name: str, content: str | None, message: str
) -> None:
    folder = sample.hard_negatives("train")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    before = contents(folder)
    with pytest.raises(UserError, match=f"exists and differs from the table .*{message}"):
        prepare(sample)
    assert contents(folder) == before


def test_invalid_row_leaves_no_folder(sample: DataRoot) -> None:
    folder, table = sample.hard_negatives("train"), sample.hard_negatives_table("train")
    shutil.rmtree(folder)
    table.write_text(table.read_text().replace("['a", "[a", 1))
    with pytest.raises(DataError, match=r"row 0 .*'neg_caption' is not a list"):
        prepare(sample)
    assert not folder.exists() and {path.name for path in folder.parent.iterdir()} == {
        table.name, sample.hard_negatives_table("val").name
    }  # fmt: skip


def test_missing_table_is_refused(tmp_path: Path, sample: DataRoot) -> None:
    sample.hard_negatives_table("train").unlink()
    with pytest.raises(DataError, match=r"there is no file .*\.tsv"):
        prepare(sample)
