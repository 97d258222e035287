"""SR2D's measures by hand."""

from __future__ import annotations

import pytest

from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.bench.tables import visor as visor_of
from dpt.intervals import Estimate
from tests.evaluation.bench.rows import both, row


def seen(prompt: str, *pictures: tuple[bool, bool], category: str = "left") -> list[ImageResult]:
    return [
        row("base", prompt, i, there and placed, category=category, atoms=both(there, placed))
        for i, (there, placed) in enumerate(pictures)
    ]


def visor(rows: list[ImageResult]) -> dict[str, Estimate]:
    return visor_of(MethodResults.of(rows))


YES, UNPLACED, NO = (True, True), (True, False), (False, False)


def test_by_hand() -> None:
    rows = [
        *seen("a", YES, YES, UNPLACED, NO),
        *seen("b", YES, NO, NO, NO),
        *seen("c", NO, NO, NO, NO),
        *seen("d", NO, NO, NO, NO, category="and"),
    ]
    found = {name: value.value for name, value in visor(rows).items()}
    assert found == pytest.approx(
        {"OA": 4 / 12, "VISOR uncond": 3 / 12, "VISOR cond": 3 / 4, "VISOR 1 of 4": 2 / 3, "VISOR 2 of 4": 1 / 3,
         "VISOR 3 of 4": 0, "VISOR 4 of 4": 0}
    )  # fmt: skip


def test_nothing_there_is_no_division() -> None:
    found = visor(seen("a", NO, NO))
    assert (found["VISOR cond"].value, found["VISOR cond"].low, found["VISOR cond"].high) == (0, 0, 1)
    assert visor(seen("a", YES, category="and")) == {}


def test_a_placed_pair_that_is_not_there_does_not_count() -> None:
    assert visor(seen("a", (False, True)))["VISOR uncond"].value == 0


def test_uneven_prompts_have_no_visor_n() -> None:
    assert list(visor([*seen("a", YES, YES), *seen("b", YES)])) == ["OA", "VISOR uncond", "VISOR cond"]


def test_the_report_has_them_for_sr2d_only() -> None:
    rows = {"base": MethodResults.of(seen("a", YES, NO))}
    assert "VISOR cond" in report.tables(report.results(rows, "sr2d"), [])
    assert "VISOR" not in report.tables(report.results(rows, "lmd"), [])
