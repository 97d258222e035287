"""`dpt bench diff`: what differs between two benchmarks, then their numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.main import run
from dpt.errors import UserError
from dpt.evaluation.bench.verdicts import PromptVerdicts, verdict_change

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def first(drawn: Path, tmp_path: Path) -> Path:
    return shutil.copytree(drawn, tmp_path / "first")


@pytest.fixture
def other(drawn: Path, tmp_path: Path) -> Path:
    """The same benchmark with other records and verdicts."""
    return shutil.copytree(drawn, tmp_path / "other")


def change_record(folder: Path, **methods: dict[str, str]) -> None:
    record = json.loads((folder / "bench.json").read_text())
    for name, identity in methods.items():
        record["methods"][name] |= identity
    (folder / "bench.json").write_text(json.dumps(record))


def set_verdicts(folder: Path, right: list[int]) -> int:
    file = folder / "base.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["passed"] = number in right
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def compare(first: Path, second: Path, capsys: Capture) -> str:
    capsys.readouterr()
    run(["bench", "diff", str(first), str(second)])
    return capsys.readouterr().out


def test_equal_benchmarks_differ_in_nothing(first: Path, other: Path, capsys: Capture) -> None:
    for folder in (first, other):
        report(ReportOptions(folder, out=folder / "report"))
        shutil.copy(folder / "report" / "manifest.json", folder)
    printed = compare(first, other, capsys)
    assert printed.startswith("no setting, model, judge or library differs\n")
    assert "0 became right, 0 wrong" in printed


def test_each_difference_is_named_before_the_numbers(first: Path, other: Path, capsys: Capture) -> None:
    change_record(other, base={"detector": "another oracle", "model": "f" * 64})
    total = set_verdicts(first, [0, 1])
    set_verdicts(other, [1, 2, 3])
    printed = compare(first, other, capsys)
    assert "base, judge's detector: oracle" in printed and "| another oracle" in printed
    assert "| ffffffffffff\n" in printed, "a hash is shortened"
    line = next(line for line in printed.splitlines() if line.startswith("base: "))
    assert f"{200 / total:.1f} % | {300 / total:.1f} % right, difference +{100 / total:.1f}" in line
    assert line.endswith(f"over {total} images; 2 became right, 1 wrong")


def test_only_what_differs_within_a_setting_is_shown(first: Path, other: Path, capsys: Capture) -> None:
    correction = {"factor": 0.02, "target": "fused", "norm": "rms", "interval": {"start": 0.0, "end": 0.6}, "every": 1}
    judge = "reader of shapes and colours with the long description of its weights, thresholds and {} rules"
    change_record(first, base={"correction": correction, "judge": judge.format("old")})
    interval = {"start": 0.0, "end": 0.4}
    change_record(other, base={"correction": {**correction, "interval": interval}, "judge": judge.format("new")})
    printed = compare(first, other, capsys)
    assert "base, correction.interval.end: 0.6 | 0.4\n" in printed and "factor" not in printed
    (line,) = (line for line in printed.splitlines() if "judge's judge" in line)
    assert "old rules | ..." in line and line.endswith("new rules")


def test_libraries_are_those_that_drew_the_images(first: Path, other: Path, capsys: Capture) -> None:
    record = json.loads((other / "bench.json").read_text())
    for libraries in record["libraries"].values():
        libraries["torch"] = "1.0"
    (other / "bench.json").write_text(json.dumps(record))
    assert "library torch: 2" in compare(first, other, capsys).partition(" | 1.0\n")[0]
    report(ReportOptions(other))  # by the libraries of this process, which say nothing about the images
    assert " | 1.0\n" in compare(first, other, capsys)
    del record["libraries"]
    (other / "manifest.json").unlink()
    (other / "bench.json").write_text(json.dumps(record))
    assert f"libraries of {other}: unknown" in compare(first, other, capsys)


def test_the_images_that_both_have_are_compared(first: Path, other: Path, capsys: Capture) -> None:
    lines = [line for line in (other / "base.jsonl").read_text().splitlines() if json.loads(line)["index"] == 0]
    (other / "base.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert f"over the {len(lines)} images that both have;" in compare(first, other, capsys)
    (other / "base.jsonl").write_text(f"{lines[0]}\n".replace('"prompt_id": "', '"prompt_id": "another-'))
    assert "base: not compared: no image is in both" in compare(first, other, capsys)


def test_the_rate_is_the_mean_over_categories() -> None:
    first = {**{f"a{n}": PromptVerdicts("a", {0: True}) for n in range(9)}, "b": PromptVerdicts("b", {0: False})}
    second = {prompt: PromptVerdicts(verdicts.category, {0: True}) for prompt, verdicts in first.items()}
    change = verdict_change(first, second)
    assert (change.first, change.second, change.difference.value) == (0.5, 1.0, 0.5)


def test_a_report_can_stand_for_its_run(first: Path, other: Path, tmp_path: Path, capsys: Capture) -> None:
    report(ReportOptions(other, out=tmp_path / "report"))
    printed = compare(first, tmp_path / "report", capsys)
    assert printed.startswith("no setting, model, judge or library differs\n")
    assert "0 became right, 0 wrong" in printed


def test_numbers_of_other_prompts_are_not_compared(first: Path, other: Path, capsys: Capture) -> None:
    record = json.loads((other / "bench.json").read_text())
    for identity in record["methods"].values():
        identity["suite_hash"] = "0" * 64
    (other / "bench.json").write_text(json.dumps(record))
    assert "numbers are not compared" in compare(first, other, capsys)
    with pytest.raises(UserError, match="the same folder"):
        run(["bench", "diff", str(other), str(other)])
    with pytest.raises(UserError, match=r"holds (no report|neither)"):
        run(["bench", "diff", str(other), str(other.parent)])
