from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpt.data.files.annotations import read_expressions
from dpt.errors import DataError

GOOD: dict[str, Any] = {
    "images": [
        {"id": 7, "original_id": 581, "file_name": "a.jpg", "height": 480, "width": 640,
         "caption": "two dogs left of the bench", "dataset_name": "refcoco"},
        {"id": 8, "file_name": "b.jpg", "caption": "the cat"},
    ],
    "annotations": [
        {"id": 70, "image_id": 7, "bbox": [40.0, 112.5, 96.0, 130.0], "tokens_positive": [[0, 8]]},
        {"id": 71, "image_id": 7, "bbox": [600, 400, 40.6, 80], "tokens_positive": [[0, 3], [4, 8]], "iscrowd": 0},
        {"id": 72, "image_id": 7, "bbox": [0, 0, 5, 5], "tokens_positive": [[0, 8]], "iscrowd": 1},
        {"id": 73, "image_id": 8, "bbox": [1, 2, 3, 4], "tokens": [[4, 7]]},
    ],
}  # fmt: skip


def write(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_boxes_and_spans_are_read(tmp_path: Path) -> None:
    dogs, cat = read_expressions(write(tmp_path / "r.json", GOOD))
    assert (dogs.id, dogs.file_name, dogs.size, dogs.original_id) == (7, "a.jpg", (640, 480), 581)
    assert [box.corners for box in dogs.boxes] == [(40, 112.5, 136, 242.5), (600, 400, 640, 480)], (
        "clipped, and without crowds"
    )
    assert [box.spans for box in dogs.boxes] == [((0, 8),), ((0, 3), (4, 8))]
    assert cat.boxes[0].corners == (1, 2, 4, 6) and cat.boxes[0].spans == ((4, 7),) and cat.size is None
    assert dogs.where == f"{tmp_path / 'r.json'}, images[0]"


Change = Callable[[dict[str, Any]], Any]


def put(part: str, nth: int, key: str, value: Any) -> Change:
    return lambda content: content[part][nth].__setitem__(key, value)


BAD: list[tuple[Change, str]] = [
    (put("annotations", 0, "bbox", [0, 0, 0, 5]), r"annotations\[0\]: the box \[0.0, 0.0, 0.0, 5.0\] has no area"),
    (put("annotations", 0, "bbox", [5, 5, 9, -1]), r"annotations\[0\]: the box .* has no area"),
    (put("annotations", 1, "bbox", [600, 0, 80, 9]), r"annotations\[1\]: the box from \(600, 0\) to \(680, 9\) is not"),
    (put("annotations", 1, "bbox", [700, 0, 80, 9]), r"annotations\[1\]: .* not inside its image of 640x480"),
    (put("annotations", 1, "bbox", [640, 0, 0.5, 9]), "not inside its image"),
    (put("annotations", 0, "bbox", [1, 2, 3]), "'bbox' should be 4 numbers, not"),
    (put("annotations", 0, "bbox", [1, 2, 3, True]), "'bbox' should be 4 numbers"),
    (put("annotations", 0, "bbox", "1 2 3 4"), "'bbox' should be a list, not '1 2 3 4'"),
    (put("annotations", 0, "bbox", [0, 0, 1, 10**400]), "'bbox' should be 4 numbers"),
    (put("annotations", 0, "tokens_positive", [[0, 27]]), r"annotations\[0\]: the span \[0, 27\] is not inside the 26"),
    (put("annotations", 0, "tokens_positive", [[-1, 3]]), r"the span \[-1, 3\]"),
    (put("annotations", 0, "tokens_positive", [[3, 3]]), r"the span \[3, 3\]"),
    (put("annotations", 0, "tokens_positive", [[0.0, 3]]), "two whole numbers"),
    (put("annotations", 0, "tokens_positive", [[0]]), "two whole numbers"),
    (put("annotations", 0, "tokens_positive", []), "no span says"),
    (lambda c: c["annotations"][0].pop("tokens_positive"), "there is no 'tokens'"),
    (put("annotations", 1, "id", 70), r"annotations\[1\]: the id 70 occurs twice"),
    (put("annotations", 3, "image_id", 9), r"images\[1\]: there is no annotation"),
    (lambda c: c["annotations"].append({"id": 99, "image_id": 12}), r"\[4\]: there is no image with the id 12"),
    (put("images", 1, "id", 7), r"images\[1\]: the id 7 occurs twice"),
    (put("images", 1, "id", "8"), r"images\[1\]: 'id' should be a whole number, not '8'"),
    (put("images", 1, "id", True), "'id' should be a whole number"),
    (put("images", 0, "caption", ""), r"images\[0\]: 'caption' is empty"),
    (put("images", 0, "caption", 5), "'caption' should be a text, not 5"),
    (put("images", 0, "caption", "\ud800"), "half a character"),
    (put("images", 0, "width", 0), "cannot have 0 by 480 pixels"),
    (put("images", 0, "width", "640"), "'width' should be a whole number"),
    (lambda c: c["images"][0].pop("width"), "there is no 'width'"),
    (put("images", 0, "file_name", "../../secret.jpg"), "not a file name under the data folder"),
    (put("images", 0, "file_name", "/etc/a.jpg"), "not a file name under"),
    (put("images", 0, "file_name", "C:\\a.jpg"), "not a file name under"),
    (put("images", 0, "file_name", "a\n.jpg"), "not a file name under"),
    (put("images", 0, "file_name", "."), "not a file name under"),
    (lambda c: c["images"].__setitem__(0, ["a"]), r"images\[0\]: expected an object"),
    (lambda c: c.pop("images"), "there is no 'images'"),
    (lambda c: c.__setitem__("annotations", {}), "'annotations' should be a list"),
    (lambda c: c.__setitem__("images", []), "annotations"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_invalid_expressions_are_reported_in_one_sentence(tmp_path: Path, change: Change, message: str) -> None:
    content = copy.deepcopy(GOOD)
    change(content)
    file = write(tmp_path / "r.json", content)
    with pytest.raises(DataError, match=message) as caught:
        read_expressions(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, is not valid JSON"),
        ('{"images": [],\n "annotations": [}', "line 2, is not valid JSON: .*column 18"),
        ("[]", "expected an object"),
        ('{"images": [NaN]}', "NaN is not a number"),
        ("[" * 200_000, "is not valid JSON"),
        ("1" * 10_000, "is not valid JSON"),
        ('{"images": [], "annotations": []}', "has no usable expression"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_expressions(write(tmp_path / "r.json", text))


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*r\.json"):
        read_expressions(tmp_path / "r.json")
    with pytest.raises(DataError, match="is not a regular file but a folder"):
        read_expressions(tmp_path)
    (tmp_path / "r.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8 text, at byte 12"):
        read_expressions(tmp_path / "r.json")


def test_reader_with_a_fault_callback_continues(tmp_path: Path) -> None:
    content = copy.deepcopy(GOOD)
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    content["images"].append(5)
    faults: list[DataError] = []
    assert [expression.id for expression in read_expressions(write(tmp_path / "r.json", content), faults.append)] == [8]
    assert len(faults) == 2
