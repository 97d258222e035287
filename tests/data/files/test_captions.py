from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.data.files.annotations import read_captions, read_prompts
from dpt.data.files.reading import DataRoot
from dpt.errors import DataError


def write(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


def test_captions_of_an_export_are_read(exported: DataRoot) -> None:
    captions = read_captions(exported.captions("val2014"))
    assert len(captions.file_names) == 6
    assert {len(texts) for texts in captions.texts.values()} == {2}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1, "file_name": "a"}] * 2, [], r"images\[1\]: the id 1 occurs twice"),
        ([{"id": 1, "file_name": "../a"}], [], r"images\[0\]: '../a' is not a file name"),
        ([], [{"id": 1, "image_id": 5, "caption": "a"}], r"annotations\[0\]: there is no image with the id 5"),
        ([{"id": 1, "file_name": "a"}], [{"id": 1, "image_id": 1, "caption": " "}], "'caption' is empty"),
        ([{"id": 1, "file_name": "a"}], [{"id": 1, "image_id": 1, "caption": "b"}] * 2, r"annotations\[1\]: the id 1"),
    ],
)
def test_invalid_captions_are_refused(tmp_path: Path, images: list[Any], annotations: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_captions(write(tmp_path / "c.json", {"images": images, "annotations": annotations}))


def test_prompts_are_read_under_either_key(tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.json", [{"captions": " two cups "}, {"caption": "a dog"}])
    assert read_prompts(prompts) == ["two cups", "a dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "should hold a list of prompts"),
        ([], "no usable prompt"),
        ([{"captions": "a"}, {"text": "b"}], "row 1: there is no 'caption'"),
        ([{"captions": ["a"]}], "row 0: 'captions' should be a text"),
        (["a"], "row 0: expected an object"),
    ],
)
def test_invalid_prompts_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(write(tmp_path / "p.json", content))
