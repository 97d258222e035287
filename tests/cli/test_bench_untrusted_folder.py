"""Untrusted benchmark folders: invalid ones are refused, and no files outside are read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dpt.cli.bench import common as bench_record
from dpt.cli.bench.report import ReportOptions, picture_file, report
from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench import tables
from dpt.evaluation.bench.columns import MethodResults
from tests.evaluation.bench.rows import row
from tests.fuzz.benchmarks import BENCH
from tests.fuzz.images import png


def record(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    options = {**BENCH["asked"], **{key: value for key, value in changes.items() if key in BENCH["asked"]}}
    others = {key: value for key, value in changes.items() if key not in options}
    (folder / bench_record.RECORD).write_text(json.dumps({**BENCH, "asked": options, **others}))
    return folder


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "", ".", "a.b", "x" * 300, "a\0b"])
def test_a_method_name_cannot_be_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is used in file names"):
        bench_record.read_record(record(tmp_path, methods={name: {}}))


def test_the_folder_of_pictures_must_be_a_benchmark(tmp_path: Path) -> None:
    judged, drawn = record(tmp_path / "judged", pictures="../drawn"), tmp_path / "drawn"
    (drawn / "base").mkdir(parents=True)
    with pytest.raises(UserError, match=r"which is not the folder of a benchmark"):
        picture_file(judged, bench_record.read_record(judged), "base", "a", 0)
    record(drawn)
    assert picture_file(judged, bench_record.read_record(judged), "base", "a", 0).parent.resolve() == drawn / "base"


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {}}, {"methods": []}, {"methods": {"base": 1}}, {"categories": "single"}, {"categories": [1]},
        {"seed": "x"}, {"seed": 1.5}, {"prompts": 1.5}, {"per_prompt": None}, {"suite": 1}, {"suite": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_with_wrong_types_is_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"bench\.json is not the record of a benchmark"):
        bench_record.read_record(record(tmp_path, **changes))


@pytest.mark.parametrize("changes", [{"per_prompt": 10**9}, {"prompts": 10**9}, {"prompts": -1}, {"per_prompt": 2**64}])
def test_a_record_with_an_invalid_number_of_pictures_is_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"has an invalid number of images: it must be from 0 to 1,000,000"):
        bench_record.read_record(record(tmp_path, **changes))


def write_line(file: Path, **changes: Any) -> Path:
    file.write_text(json.dumps({**asdict(row("base")), **changes}) + "\n")
    return file


@pytest.mark.parametrize(
    "changes",
    [{"prompt_id": "../up"}, {"prompt_id": "/etc/hostname"}, {"prompt_id": ""}, {"prompt_id": "a/b"}, {"index": -1},
     {"index": 10**9}],
    ids=str,
)  # fmt: skip
def test_prompt_ids_and_indices_are_checked(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"line 1: image .* is not a valid image of a benchmark"):
        rows.read_results(write_line(tmp_path / "base.jsonl", **changes))


def test_boxes_and_scores_are_checked(tmp_path: Path) -> None:
    detected = {"label": "car", "colour": None, "size": None, "box": [1, 2, 3], "confidence": 0.5}
    with pytest.raises(UserError, match=r"the box of 'car' has 3 sides, not 4"):
        rows.read_results(write_line(tmp_path / "a.jsonl", objects=[detected]))
    with pytest.raises(UserError, match=r"clip: expected float, got nan"):
        rows.read_results(write_line(tmp_path / "a.jsonl", clip=float("nan")))
    with pytest.raises(UserError, match=r"unreadable must be between 0 and 1,000,000, not -1"):
        rows.read_results(write_line(tmp_path / "a.jsonl", unreadable=-1))


def test_binary_and_deeply_nested_lines_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\n")
    for read in (rows.read_results, rows.repair):
        with pytest.raises(UserError, match=r"is not text in UTF-8, at byte 0"):
            read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"line 1 is not JSON"):
        rows.read_results(tmp_path / "a.jsonl")


def columns(*results: rows.ImageResult) -> dict[str, MethodResults]:
    return {result.method: MethodResults.of([result]) for result in results}


def test_methods_with_other_categories_or_scores_cannot_share_a_table() -> None:
    with pytest.raises(UserError, match=r"base and dpt were not judged in the same categories"):
        tables.compute_results(columns(row("base"), row("dpt", category="right")))
    with pytest.raises(UserError, match=r"base and dpt do not have the same verdicts and scores"):
        tables.compute_results(columns(row("base", clip=0.5), row("dpt")))


@pytest.mark.parametrize("content", [png(20_000, 20_000), png(2**31 - 1, 2**31 - 1), png(8193, 8193), b"", b"GIF89a"])
def test_decompression_bombs_and_broken_pictures_are_errors(tmp_path: Path, content: bytes) -> None:
    record(tmp_path, methods={"base": {}})
    write_line(tmp_path / "base.jsonl")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/a-0.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a-0\.png is damaged or only half written"):
        report(ReportOptions(tmp_path))
    Image.new("RGB", (8, 8)).save(tmp_path / "base/a-0.png")
    report(ReportOptions(tmp_path))
    assert (tmp_path / "report.html").exists()
