from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpt.data.files.annotations import read_expressions
from dpt.data.files.hard_negatives import HardNegativeFolder, HardNegativeTable
from dpt.data.files.reading import DataRoot
from dpt.data.images import read_header, read_image
from dpt.errors import BrokenImageError, DataError


def test_root_one_level_off_is_suggested(sample: DataRoot, tmp_path: Path) -> None:
    root = sample.path
    assert DataRoot.open(root) == sample
    for given in (tmp_path, root / "coco", root / "ReC/mdetr", root / "coco/images/train2014"):
        with pytest.raises(DataError, match=rf"{given} has none of the folders .*; did you mean {root}\?$"):
            DataRoot.open(given)
    (tmp_path / "empty").mkdir()
    shutil.move(root, tmp_path / "empty/far/away")
    with pytest.raises(DataError, match=r"none of the folders coco/, ReC/, ITM/: give the folder that holds them"):
        DataRoot.open(tmp_path)
    with pytest.raises(DataError, match=r"there is no data folder .*none"):
        DataRoot.open(tmp_path / "none")


def test_identity_depends_on_content_not_path(sample: DataRoot, tmp_path: Path) -> None:
    before = sample.identity()
    moved = DataRoot(Path(shutil.copytree(sample.path, tmp_path / "elsewhere/copy")))
    assert moved.identity() == before
    moved.expressions("refcoco", "val").unlink()  # validation data do not influence training
    assert moved.identity() == before

    picture = next(moved.images("train2014").iterdir())
    content = picture.read_bytes()
    picture.unlink()
    assert moved.identity() != before
    picture.write_bytes(content)
    assert moved.identity() == before
    index = moved.hard_negatives("train") / "imgname2txtid.json"
    for file in (moved.expressions("refall", "train"), index):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert moved.identity() != before, file
        file.write_bytes(content)
    assert moved.identity("mine") != before


READERS: list[Callable[[Path], object]] = [
    read_expressions,
    HardNegativeTable,
    lambda file: HardNegativeFolder(file.parent),
]


@pytest.mark.parametrize("read", READERS)
def test_annotations_must_be_regular_files_in_their_folder(tmp_path: Path, read: Callable[[Path], object]) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside.json"
    folder.mkdir()
    outside.write_text("{}")
    file = folder / "imgname2txtid.json"
    for damage, message in (
        (lambda: os.mkfifo(file), "is not a regular file but a named pipe"),
        (lambda: file.symlink_to("/dev/zero"), "is a link to a file outside"),
        (lambda: file.symlink_to(outside), "is a link to a file outside"),
        (lambda: file.symlink_to(file.name), "cannot be read: Too many levels of symbolic links"),
    ):
        damage()
        with pytest.raises(DataError, match=message):
            read(file)
        file.unlink()


def test_images_must_be_regular_files(tmp_path: Path) -> None:
    pipe, zero = tmp_path / "pipe.jpg", tmp_path / "zero.jpg"
    os.mkfifo(pipe)
    zero.symlink_to("/dev/zero")
    for read in (read_image, read_header):
        for file in (pipe, zero):
            with pytest.raises(BrokenImageError, match="is not a regular file"):
                read(file)
