"""The metrics of SR2D."""

from __future__ import annotations

import pytest

from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.bench.tables import visor as visor_of
from dpt.intervals import Estimate
from tests.evaluation.bench.rows import row, sr2d_atoms


def prompt_results(prompt: str, *pictures: tuple[bool, bool], category: str = "left") -> list[ImageResult]:
    return [
        row("base", prompt, i, both and placed, category=category, atoms=sr2d_atoms(both, placed))
        for i, (both, placed) in enumerate(pictures)
    ]


def visor(rows: list[ImageResult]) -> dict[str, Estimate]:
    return visor_of(MethodResults.of(rows))


YES, UNPLACED, NO = (True, True), (True, False), (False, False)


def test_metrics_of_a_small_example() -> None:
    rows = [
        *prompt_results("a", YES, YES, UNPLACED, NO),
        *prompt_results("b", YES, NO, NO, NO),
        *prompt_results("c", NO, NO, NO, NO),
        *prompt_results("d", NO, NO, NO, NO, category="and"),
    ]
    values = {name: value.value for name, value in visor(rows).items()}
    assert values == pytest.approx(
        {"OA": 4 / 12, "VISOR uncond": 3 / 12, "VISOR cond": 3 / 4, "VISOR 1 of 4": 2 / 3, "VISOR 2 of 4": 1 / 3,
         "VISOR 3 of 4": 0, "VISOR 4 of 4": 0}
    )  # fmt: skip


def test_without_detected_pairs_the_conditional_rate_is_zero() -> None:
    metrics = visor(prompt_results("a", NO, NO))
    assert (metrics["VISOR cond"].value, metrics["VISOR cond"].low, metrics["VISOR cond"].high) == (0, 0, 1)
    assert visor(prompt_results("a", YES, category="and")) == {}


def test_a_relation_without_both_objects_does_not_count() -> None:
    assert visor(prompt_results("a", (False, True)))["VISOR uncond"].value == 0


def test_visor_n_needs_equal_numbers_of_pictures() -> None:
    assert list(visor([*prompt_results("a", YES, YES), *prompt_results("b", YES)])) == [
        "OA",
        "VISOR uncond",
        "VISOR cond",
    ]


def test_only_sr2d_tables_have_the_metrics() -> None:
    rows = {"base": MethodResults.of(prompt_results("a", YES, NO))}
    assert "VISOR cond" in report.tables(report.compute_results(rows, "sr2d"), [])
    assert "VISOR" not in report.tables(report.compute_results(rows, "lmd"), [])
