"""What is told of the long run is what it found."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fuzz.campaign import Found
from tests.fuzz.every import PARSERS
from tests.fuzz.summary import write_summary

TOLD = Path(__file__).parents[2] / "docs/results/reliability"


def test_the_table_is_that_of_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "fuzz.json").write_text((TOLD / "fuzz.json").read_text())
    write_summary([], tmp_path)
    table = [line for line in (tmp_path / "fuzz.md").read_text().splitlines() if line.startswith("|")]
    assert table == [line for line in (TOLD / "fuzz.md").read_text().splitlines() if line.startswith("|")]


def test_it_is_of_parsers_that_are_here_and_nothing_was_found() -> None:
    rows = json.loads((TOLD / "fuzz.json").read_text())["parsers"]
    assert rows and {row["parser"] for row in rows} <= set(PARSERS)
    for row in rows:
        assert row["other"] == 0 and row["accepted"] + row["refused"] == row["cases"] >= 10_000, row


def test_parsers_that_were_not_run_again_keep_their_row(tmp_path: Path) -> None:
    one, other = list(PARSERS)[:2]
    write_summary([Found(one, 10, 4, 6), Found(other, 10, 4, 6)], tmp_path)
    write_summary([Found(other, 20, 8, 12)], tmp_path)
    rows = json.loads((tmp_path / "fuzz.json").read_text())["parsers"]
    assert [(row["parser"], row["cases"]) for row in rows] == [(one, 10), (other, 20)]
    assert "| all | 30 | 18 | 12 | 0 |" in (tmp_path / "fuzz.md").read_text()
