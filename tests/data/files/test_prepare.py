from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpt.data.files.hard_negatives import prepare
from dpt.data.files.root import DataRoot
from dpt.errors import DataError, UserError
from tests.data.files.conftest import SAMPLE


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_writes_what_an_export_writes(sample: DataRoot) -> None:
    folder = sample.hard_negatives("train")
    shutil.rmtree(folder)
    assert prepare(sample)
    assert contents(folder) == contents(DataRoot(SAMPLE).hard_negatives("train"))
    assert not prepare(sample), "all is there"


def test_other_layout_of_the_same_content_is_left_alone(sample: DataRoot) -> None:
    file = sample.hard_negatives("train") / "00002.json"
    file.write_text(file.read_text().replace(", ", ",  ").replace('{"', '{ "'))
    before = contents(file.parent)
    assert not prepare(sample)
    assert contents(file.parent) == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("00002.json", '{"title": "x", "neg_caption": "[\'y\']", "neg_image": "[\'z\']"}', "00002.json differs"),
        ("00002.json", "{", "00002.json, line 1, is not valid JSON"),
        ("00002.json", None, "00002.json is missing"),
        ("00009.json", "{}", "00009.json is not of the table"),
        ("notes.txt", "mine", "notes.txt is not of the table"),
        ("imgname2txtid.json", '{"a.jpg": [0, 1, 2, 3, 4, 5, 6, 7]}', "gives captions to other images"),
    ],
)
def test_a_folder_that_says_something_else_is_not_touched(
    sample: DataRoot, name: str, content: str | None, says: str
) -> None:
    folder = sample.hard_negatives("train")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    before = contents(folder)
    with pytest.raises(UserError, match=f"exists and differs from the table .*{says}"):
        prepare(sample)
    assert contents(folder) == before


def test_a_bad_row_leaves_nothing_behind(sample: DataRoot) -> None:
    folder, table = sample.hard_negatives("train"), sample.hard_negatives_table("train")
    shutil.rmtree(folder)
    table.write_text(table.read_text().replace("['a", "[a", 1))
    with pytest.raises(DataError, match=r"row 0 .*'neg_caption' is not a list"):
        prepare(sample)
    assert not folder.exists() and {path.name for path in folder.parent.iterdir()} == {
        table.name, sample.hard_negatives_table("val").name
    }  # fmt: skip


def test_nothing_to_make_it_of(tmp_path: Path, sample: DataRoot) -> None:
    sample.hard_negatives_table("train").unlink()
    with pytest.raises(DataError, match=r"there is no file .*\.tsv"):
        prepare(sample)
