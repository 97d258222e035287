from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dpt.data.example import CAPTION_ONLY, collate
from dpt.data.folder import FolderSource, is_picture_folder, read_picture_folder
from dpt.data.images import Framing
from dpt.errors import BrokenImageError, DataError

ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": "a red square", "weight": 0.25},
    {"file_name": "sub/b.png", "prompt": "left\u2028of it"},
    {"file_name": "a.png", "caption": "another caption", "other": [1]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "pictures"
    (out / "sub").mkdir(parents=True)
    for nth, name in enumerate(("a.png", "sub/b.png")):
        Image.effect_noise((20, 16), 50 + nth).convert("RGB").save(out / name)
    return out


def write(folder: Path, rows: list[Any]) -> Path:
    (folder / "metadata.jsonl").write_text("\ufeff" + "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n")
    return folder


def test_rows_become_captioned_weighted_examples(folder: Path) -> None:
    source = FolderSource(write(folder, ROWS), Framing(16), seed=0)
    assert is_picture_folder(folder) and len(source) == 3
    batch = collate([source.example(index, 0, CAPTION_ONLY) for index in range(3)])
    assert batch.captions == ["a red square", "left\u2028of it", "another caption"]
    assert batch.weights.tolist() == [0.25, 1.0, 1.0]
    assert batch.images.shape == (3, 3, 16, 16) and batch.negatives is None and batch.expressions is None
    assert source[1].id == f"{folder / 'metadata.jsonl'}, line 2"


def test_captions_from_text_files_beside_the_images(folder: Path) -> None:
    assert not is_picture_folder(folder)
    (folder / "a.txt").write_text("\ufeffa red square\n")
    assert is_picture_folder(folder)
    (row,) = read_picture_folder(folder)
    assert (row.file_name, row.caption, row.weight) == ("a.png", "a red square", 1.0)
    shutil.copy(folder / "a.png", folder / "c.JPG")
    with pytest.raises(DataError, match=r"c\.JPG has no caption: write it to c\.txt"):
        read_picture_folder(folder)


def test_flips_mirror_image_and_caption_together(folder: Path) -> None:
    plain, flipping = (
        FolderSource(write(folder, ROWS), Framing(16, random_flip=flip), seed=0) for flip in (False, True)
    )
    flips = 0
    for epoch in range(20):
        before, after = plain.example(1, epoch), flipping.example(1, epoch)
        flipped = after.caption == "right\u2028of it"
        flips += flipped
        expected = before.image.values.flip(-1) if flipped else before.image.values
        assert torch.equal(after.image.values, expected)
    assert 4 < flips < 16


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "a.png"}, "there is no caption: give it as 'caption', 'text' or 'prompt'"),
        ({"file_name": "a.png", "text": "x", "prompt": "y"}, "'text' and 'prompt' differ: keep one"),
        ({"file_name": "a.png", "text": " "}, "'text' is empty"),
        ({"file_name": "a.png", "text": 3}, "'text' should be a text, not 3"),
        ({"file_name": "none.png", "text": "x"}, "there is no image .*none.png"),
        ({"file_name": "../up.png", "text": "x"}, "is not a file name under the data folder"),
        ({"file_name": "a" * 252 + ".png", "text": "x"}, "is too long for the name of a file"),
        ({"text": "x"}, "there is no 'file_name'"),
        ({"file_name": "a.png", "text": "x", "weight": -1}, "'weight' should be a number of at least 0, not -1"),
        ({"file_name": "a.png", "text": "x", "weight": "1"}, "'weight' should be a number of at least 0, not '1'"),
        (["a.png"], "expected an object"),
    ],
)
def test_invalid_row_is_reported_with_its_line(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 2: .*{message}"):
        read_picture_folder(write(folder, [ROWS[0], row]))


def test_invalid_files_are_refused(folder: Path, tmp_path: Path) -> None:
    metadata = folder / "metadata.jsonl"
    for content, message in (
        (b"\n\n", "metadata.jsonl names no image"),
        (b'{"file_name": "a.png", "text": NaN}', "line 1, is not valid JSON: NaN is not a number"),
        (b'\n{"file_name"', "line 2, is not valid JSON"),
        (b'{"file_name": "a.png", "text": "\xff"}', "line 1, is not UTF-8 text"),
    ):
        metadata.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_picture_folder(folder)
    with pytest.raises(DataError, match="there is no data folder"):
        read_picture_folder(tmp_path / "none")
    (folder / "a.png").write_bytes(b"text")
    with pytest.raises(BrokenImageError, match="cannot identify image file"):
        FolderSource(write(folder, ROWS), Framing(16), 0)[0]


def test_identity_depends_on_content_not_path(folder: Path, tmp_path: Path) -> None:
    before = FolderSource(write(folder, ROWS), Framing(16), 0).identity()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert FolderSource(copy, Framing(32), 1).identity() == before
    assert FolderSource(write(copy, ROWS[:2]), Framing(16), 0).identity() != before
