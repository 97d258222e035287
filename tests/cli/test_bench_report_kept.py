"""`dpt bench report --kept`: includes the methods of an earlier report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import run
from dpt.errors import UserError
from tests.cli.test_bench import options


@pytest.fixture(scope="module")
def both(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model draws noise, so some verdicts are changed to right."""
    folder = tmp_path_factory.mktemp("both") / "bench"
    shutil.copytree(drawn, folder)
    for method, right in (("base", (0, 3, 5)), ("tuned", (0, 1, 3, 6))):
        lines = [json.loads(line) for line in (folder / f"{method}.jsonl").read_text().splitlines()]
        for number in right:
            lines[number]["passed"] = True
        (folder / f"{method}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def alone(both: Path, method: str, folder: Path) -> Path:
    """Copy the benchmark with only this method."""
    folder.mkdir()
    record = json.loads((both / "bench.json").read_text())
    record["methods"] = {method: record["methods"][method]}
    (folder / "bench.json").write_text(json.dumps(record))
    for file in (f"{method}.jsonl", f"{method}.cost.jsonl"):
        shutil.copy(both / file, folder)
    shutil.copytree(both / method, folder / method)
    return folder


@pytest.fixture
def kept(both: Path, tmp_path: Path) -> Path:
    report(ReportOptions(alone(both, "base", tmp_path / "base"), out=tmp_path / "kept", reference="scenes"))
    return tmp_path / "kept"


def test_the_files_equal_those_of_a_single_report(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    report(ReportOptions(both, out=tmp_path / "single", reference="scenes"))
    report(ReportOptions(later, kept=kept, out=tmp_path / "kept_report", reference="scenes"))
    for name in ("table.md", "results.json", "summary.jsonl", "manifest.json"):
        assert (tmp_path / "kept_report" / name).read_text() == (tmp_path / "single" / name).read_text(), name
    page = (tmp_path / "kept_report" / "report.html").read_text()
    assert "There are no images of base" in page and "tuned - base" in page


def test_a_report_can_overwrite_the_report_it_includes(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    report(ReportOptions(later, kept=kept, out=kept))
    first = (kept / "table.md").read_text()
    report(ReportOptions(later, kept=kept, out=kept))
    assert (kept / "table.md").read_text() == first and "| tuned - base |" in first


def test_methods_may_have_other_numbers_of_images_than_earlier_ones(both: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(both, tmp_path / "bench")
    tuned = [line for line in (folder / "tuned.jsonl").read_text().splitlines() if json.loads(line)["index"] == 0]
    (folder / "tuned.jsonl").write_text("".join(f"{line}\n" for line in tuned))
    report(ReportOptions(folder, out=tmp_path / "single"))
    for name, other in (("base", "tuned"), ("tuned", "base")):
        report(ReportOptions(folder, methods=(name,), baseline=name, out=tmp_path / f"only-{name}"))
        if other == "base":  # a mean of its two images cannot be checked by those of one
            report(ReportOptions(alone(folder, "base", tmp_path / "base"), kept=tmp_path / "only-tuned", out=folder))
    differences = [
        next(line for line in (where / "table.md").read_text().splitlines() if line.startswith("| tuned - base |"))
        for where in (folder, tmp_path / "single")
    ]
    assert differences[0] == differences[1]
    with pytest.raises(UserError, match=r"has image 1 of .* by base, which tuned does not have"):
        report(ReportOptions(alone(folder, "tuned", tmp_path / "tuned"), kept=tmp_path / "only-base"))


def test_a_mean_over_seeds_is_a_row_and_not_a_method_of_later_reports(both: Path, tmp_path: Path) -> None:
    report(ReportOptions(both, seeds=("mean=base,tuned",), also=("tuned",), out=tmp_path / "first"))
    table = (tmp_path / "first/table.md").read_text()
    assert "| mean |" in table and "| mean - tuned |" in table
    report(ReportOptions(alone(both, "tuned", tmp_path / "tuned"), kept=tmp_path / "first", out=tmp_path / "again"))
    assert "mean" not in (tmp_path / "again/table.md").read_text()
    for seeds, why in (("mean=base,other", "there is no method 'other'"), ("base=base,tuned", "with a new name")):
        with pytest.raises(UserError, match=why):
            report(ReportOptions(both, seeds=(seeds,)))


def test_a_report_with_other_options_is_an_error(kept: Path, model: Path, tuned: Path, tmp_path: Path) -> None:
    run(options(model, tmp_path / "other", f"tuned={tuned}", num_timesteps=3))
    with pytest.raises(UserError, match=r"the report in .*kept was run with --num_timesteps 2, this benchmark with 3"):
        report(ReportOptions(tmp_path / "other", kept=kept))


def test_a_broken_earlier_report_is_an_error(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    with pytest.raises(UserError, match="are in this benchmark too: --kept has no effect"):
        report(ReportOptions(both, kept=kept))
    with pytest.raises(UserError, match="nor a report of it: cannot read"):
        report(ReportOptions(later, kept=tmp_path / "nowhere"))
    text = (kept / "summary.jsonl").read_text()
    for broken, message in {
        text.replace("[1, 0]", "[0, 0]", 1): "disagree on base",
        "\n".join(text.splitlines()[1:]): "the earlier report has no verdict of base on any image of",
        text.replace('"right"', '"wrong"', 1): "was not written by `dpt bench report`",
        text[: len(text) // 2]: "was not written by `dpt bench report`",
        text.replace('"base"', '"other"'): "has no line for the method base of results.json",
    }.items():
        assert broken != text
        (kept / "summary.jsonl").write_text(broken)
        with pytest.raises(UserError, match=message):
            report(ReportOptions(later, kept=kept))
