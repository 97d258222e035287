"""Results files: incomplete and duplicate lines after kills and concurrent runs are repaired or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpt.errors import UserError
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.results import append_results, read_lines, read_results, repair, replace_results
from tests.evaluation.bench.rows import row

RESULTS = [row("base", prompt_id, index, clip=0.25) for prompt_id in "ab" for index in range(3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    append_results(tmp_path / "base.jsonl", RESULTS)
    return tmp_path / "base.jsonl"


def test_results_are_read_back(file: Path) -> None:
    assert read_results(file) == RESULTS
    columns = MethodResults.read(file)
    assert [columns.result(line) for line in range(len(columns))] == RESULTS
    assert [columns.key(line) for line in range(len(columns))] == [result.key for result in RESULTS]
    assert repair(file) == 0


def test_an_incomplete_last_line_is_an_error_until_repaired(file: Path) -> None:
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    with pytest.raises(UserError, match=r"base.jsonl, line 7 is not JSON"):
        read_results(file)
    assert repair(file) == 0 and file.read_text() == whole
    file.write_text(whole[:40])
    repair(file)
    assert file.read_text() == ""


def test_duplicate_lines_count_once_and_are_removed_by_repair(file: Path) -> None:
    whole = file.read_text()
    file.write_text(whole + whole)
    repeated: list[int] = []
    assert [line.result() for line in read_lines(file, repeated.append)] == RESULTS
    assert repeated == [6]
    assert repair(file) == 6 and file.read_text() == whole
    assert repair(file) == 0


def test_different_lines_of_a_picture_are_an_error_and_stay_unchanged(file: Path) -> None:
    whole = file.read_text()
    other = json.dumps({**json.loads(whole.splitlines()[0]), "passed": False}) + "\n"
    file.write_text(whole + other)
    for read in (read_results, repair, MethodResults.read):
        with pytest.raises(UserError, match=r"line 7: image 0 of a has two different lines; delete"):
            read(file)
    assert file.read_text() == whole + other


def test_replaced_results_keep_their_place(file: Path) -> None:
    wrong = row("base", "a", 2, passed=False)
    replace_results(file, {wrong.key: wrong})
    assert read_results(file) == [*RESULTS[:2], wrong, *RESULTS[3:]]


def test_invalid_values_are_named(file: Path) -> None:
    whole = file.read_text()
    for old, new, message in (
        ('"passed": true', '"passed": "yes"', r"line 1: passed: expected bool, got 'yes'"),
        ('"index": 0', '"index": true', r"line 1: index: expected int, got True"),
        ('"unseen": false, ', "", r"line 1: .*unseen"),
        ('"unseen"', '"unsaid"', r"line 1: unknown key 'unsaid'"),
        ('"met": true', '"met": 1', r"line 1: atoms\[0\]: met: expected bool, got 1"),
        ('"unreadable": 0', f'"unreadable": {10**30}', r"unreadable must be between 0 and 1,000,000"),
    ):
        file.write_text(whole.replace(old, new, 1))
        assert file.read_text() != whole
        with pytest.raises(UserError, match=message):
            MethodResults.read(file)
