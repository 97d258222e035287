"""`dpt bench report --kept`: what an earlier report counted, beside what is drawn now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpt.cli.bench.report import ReportOptions, report
from dpt.cli.bench.run import run
from dpt.errors import UserError
from tests.cli.test_bench import drawn, model, options, tuned

__all__ = ["drawn", "model", "tuned"]


@pytest.fixture(scope="module")
def both(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model draws noise, so that nothing is right: say otherwise of some."""
    folder = tmp_path_factory.mktemp("both") / "bench"
    shutil.copytree(drawn, folder)
    for method, right in (("base", (0, 3, 5)), ("tuned", (0, 1, 3, 6))):
        lines = [json.loads(line) for line in (folder / f"{method}.jsonl").read_text().splitlines()]
        for number in right:
            lines[number]["passed"] = True
        (folder / f"{method}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def alone(both: Path, method: str, folder: Path) -> Path:
    """The benchmark as if only that method had been drawn."""
    folder.mkdir()
    record = json.loads((both / "bench.json").read_text())
    record["methods"] = {method: record["methods"][method]}
    (folder / "bench.json").write_text(json.dumps(record))
    shutil.copy(both / f"{method}.jsonl", folder)
    shutil.copytree(both / method, folder / method)
    return folder


@pytest.fixture
def kept(both: Path, tmp_path: Path) -> Path:
    report(ReportOptions(alone(both, "base", tmp_path / "base"), out=tmp_path / "kept", reference="scenes"))
    return tmp_path / "kept"


def test_the_tables_are_those_of_one_report_on_both(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    report(ReportOptions(both, out=tmp_path / "one", reference="scenes"))
    report(ReportOptions(later, kept=kept, out=tmp_path / "two", reference="scenes"))
    for name in ("table.md", "results.json", "summary.jsonl", "manifest.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text(), name
    page = (tmp_path / "two" / "report.html").read_text()
    assert "Of base there are no pictures here" in page and "tuned - base" in page


def test_a_report_may_be_written_over_the_one_it_keeps(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    report(ReportOptions(later, kept=kept, out=kept))
    first = (kept / "table.md").read_text()
    report(ReportOptions(later, kept=kept, out=kept))
    assert (kept / "table.md").read_text() == first and "| tuned - base |" in first


def test_what_was_asked_otherwise_is_not_compared(kept: Path, model: Path, tuned: Path, tmp_path: Path) -> None:
    run(options(model, tmp_path / "other", f"tuned={tuned}", num_timesteps=3))
    with pytest.raises(UserError, match=r"the report in .*kept was run with another --num_timesteps: 2, here 3"):
        report(ReportOptions(tmp_path / "other", kept=kept))


def test_a_kept_report_must_be_whole(both: Path, kept: Path, tmp_path: Path) -> None:
    later = alone(both, "tuned", tmp_path / "tuned")
    with pytest.raises(UserError, match="are here too: --kept would do nothing"):
        report(ReportOptions(both, kept=kept))
    with pytest.raises(UserError, match="holds no report: cannot read"):
        report(ReportOptions(later, kept=tmp_path / "nowhere"))
    text = (kept / "summary.jsonl").read_text()
    for broken, sentence in {
        text.replace("[1, 0]", "[0, 0]", 1): "disagree on base",
        "\n".join(text.splitlines()[1:]): "the kept base has no verdict on picture 0 of",
        text.replace('"right"', '"wrong"', 1): "is not what `dpt bench report` writes",
        text[: len(text) // 2]: "is not what `dpt bench report` writes",
        text.replace('"base"', '"other"'): "has no line of base, which results.json has",
    }.items():
        assert broken != text
        (kept / "summary.jsonl").write_text(broken)
        with pytest.raises(UserError, match=sentence):
            report(ReportOptions(later, kept=kept))
