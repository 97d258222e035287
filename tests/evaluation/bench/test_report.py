"""Tables counted from lines: rates, paired differences, and lines that cannot be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpt.errors import UserError
from dpt.evaluation.bench import results as rows
from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.results import ImageResult


def row(method: str, category: str, number: int, index: int, passed: bool, noise: int = 0) -> ImageResult:
    return ImageResult(
        method, f"{category}-0-{number:04d}", index, category, "a red circle", False, noise, passed, (), (), 0
    )


def many(method: str, rights: dict[str, list[list[bool]]]) -> list[ImageResult]:
    return [
        row(method, category, number, index, passed)
        for category, prompts in rights.items()
        for number, pictures in enumerate(prompts)
        for index, passed in enumerate(pictures)
    ]


HALF = {"single": [[True, False]] * 4, "count": [[True, True], [False, False]]}
ALL = {"single": [[True, True]] * 4, "count": [[True, True], [False, False]]}


def test_categories_weigh_the_same() -> None:
    (found,) = report.results({"base": many("base", HALF)})
    assert list(found.rates) == ["single", "count", "all"]
    assert [rate.value for rate in found.rates.values()] == [0.5, 0.5, 0.5]
    (found,) = report.results({"base": many("base", ALL)})
    assert found.rates["all"].value == 0.75


def test_pictures_of_a_prompt_are_not_independent() -> None:
    """Every prompt half right: no doubt about the half. Half of the prompts all right: much doubt."""
    (found,) = report.results({"base": many("base", HALF)})
    assert (found.rates["single"].low, found.rates["single"].high) == (0.5, 0.5)
    assert (found.rates["count"].low, found.rates["count"].high) == (0.0, 1.0)


def test_differences_are_paired() -> None:
    """What both get wrong in the same prompts adds no doubt to their difference."""
    apart = report.difference(many("tuned", ALL), many("base", HALF))
    assert apart.points["single"].value == 0.5 and apart.points["single"].low == 0.5
    assert (apart.points["count"].low, apart.points["count"].high) == (0.0, 0.0)
    assert apart.points["all"].value == 0.25
    assert "| tuned - base | +50.0 (+50.0 to +50.0) | +0.0 (+0.0 to +0.0) | +25.0" in report.difference_table([apart])


def test_what_was_not_drawn_from_the_same_noise_is_not_compared() -> None:
    whole = many("base", HALF)
    for other in (whole[1:], [row("base", "single", 0, 0, True, noise=5), *whole[1:]]):
        with pytest.raises(UserError, match="tuned and base cannot be compared: picture 0 of single-0-0000"):
            report.difference(many("tuned", HALF), other)


def test_a_line_cut_by_a_kill_is_taken_off_and_any_other_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "base.jsonl"
    rows.append_results(file, many("base", HALF))
    whole = file.read_text()
    assert rows.read_results(file) == many("base", HALF)
    assert rows.repair(file) == 0
    file.write_text(whole + whole[:40])
    with pytest.raises(UserError, match=r"base.jsonl, line 13 is not JSON"):
        rows.read_results(file)
    assert rows.repair(file) == 40
    assert file.read_text() == whole
    file.write_text(whole + whole.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"line 13: picture 0 of single-0-0000 is there twice"):
        rows.read_results(file)
    file.write_text(whole.replace('"passed": true', '"passed": "yes"', 1))
    with pytest.raises(UserError, match=r"line 1: passed: expected bool, got 'yes'"):
        rows.read_results(file)
