"""Published preference files, and splits without leakage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpt.data.preference.records import (
    PreferenceRecord,
    keys_of,
    linked_groups,
    read_preferences,
    shared_keys,
    split_records,
)
from dpt.errors import DataError

CHOICE: dict[str, Any] = {
    "id": 7, "prompt": "a copper teapot", "human_preference": 2, "file_path": ["7_0.jpg", "7_1.jpg", "7_2.jpg"],
    "user_hash": "9f2c", "contain_name": False,
}  # fmt: skip


def read(tmp_path: Path, *entries: Any, name: str = "preference_train.json") -> list[PreferenceRecord]:
    file = tmp_path / name
    lines = "\n".join(map(json.dumps, entries))
    file.write_text(lines if name.endswith("l") else json.dumps(list(entries)))
    return read_preferences(file)


def test_every_published_format_is_read(tmp_path: Path) -> None:
    hpd_train = {"prompt": "p", "file_path": ["a.jpg", "b.jpg"], "human_preference": [0, 1]}
    hpd_test = {"prompt": "p", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [2, 1, 3], "raw_annotations": []}
    pair = {"caption": "c", "image_0": "x.png", "image_1": "y.png", "label_0": 0.5, "label_1": 0.5, "user_id": 4}
    choice, train, test, tie = read(tmp_path, CHOICE, hpd_train, hpd_test, pair)
    assert (choice.id, choice.target, choice.user, choice.chance) == ("7", (0, 0, 1), "9f2c", pytest.approx(1 / 3))
    assert train.target == (0, 1) and train.ranks[1] < train.ranks[0]
    assert test.pictures == ("a.jpg", "b.jpg", "c.jpg") and test.ranks == (2, 1, 3) and test.target == (0, 1, 0)
    assert (tie.prompt, tie.target, tie.user, tie.chance) == ("c", (0.5, 0.5), "4", 1)
    assert read(tmp_path, CHOICE, name="p.jsonl")[0].where.endswith("line 1")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"human_preference": 3}, "entry 1: 'human_preference' is 3, and there are 3 images: indices start at 0"),
        ({"human_preference": True}, "should be the index of an image or a list of shares, not True"),
        ({"human_preference": [0, 0, 0]}, "should be numbers from 0 up that are not all 0"),
        ({"human_preference": [1, 0]}, "there are 3 images and 2 preferences"),
        ({"file_path": ["../a.jpg", "b.jpg", "c.jpg"]}, "is not a file name under the data folder"),
        ({"file_path": ["a.jpg", "a.jpg", "c.jpg"]}, "lists an image twice"),
        ({"file_path": []}, "should list 1 to 1000 file names"),
        ({"prompt": " "}, "'prompt' is empty"),
    ],
)
def test_errors_name_the_entry(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="entry 1") as caught:
        read(tmp_path, {**CHOICE, **change})
    assert message in str(caught.value)


def record(number: int, prompt: str, user: str) -> PreferenceRecord:
    return PreferenceRecord(f"{number:03d}", prompt, ("a", "b"), (1, 0), (0, 1), user)


def test_split_shares_no_users_or_prompts_and_ignores_the_order() -> None:
    records = [record(i, f"Prompt {i // 2}", f"u{i // 3}") for i in range(120)]
    split = split_records(records, 0.25, seed=1)
    assert shared_keys(split.train, split.test) == set() and len(split.train) + len(split.test) == 120
    assert 15 <= len(split.test) <= 31
    again = split_records(records[::-1], 0.25, seed=1)
    assert {r.id for r in again.test} == {r.id for r in split.test}
    assert {r.id for r in split_records(records, 0.25, seed=2).test} != {r.id for r in split.test}
    same = [record(0, "A  red dog", "x"), record(1, "a red dog", "y")]
    assert keys_of(same[0])[0] == keys_of(same[1])[0] and len(linked_groups(same)) == 1
    with pytest.raises(DataError, match="users and prompts link them all; give a test file"):
        split_records(same, 0.5)
