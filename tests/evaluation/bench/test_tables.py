"""Tables counted from lines: rates, paired differences, and lines that cannot be counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpt.errors import UserError
from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.bench.summary import read_summary
from dpt.intervals import PROPORTION, bootstrap


def row(method: str, category: str, number: int, index: int, passed: bool, noise: int = 0) -> ImageResult:
    return ImageResult(
        method, f"{category}-0-{number:04d}", index, category, "a red circle", False, noise, passed, (), (), 0
    )


def many(method: str, rights: dict[str, list[list[bool]]]) -> MethodResults:
    return MethodResults.of(lines(method, rights))


def lines(method: str, rights: dict[str, list[list[bool]]]) -> list[ImageResult]:
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
    """Four prompts half right leave less doubt than eight pictures half right; two prompts leave all of it."""
    (found,) = report.results({"base": many("base", HALF)})
    single = found.rates["single"]
    assert single.low == pytest.approx(0.255, abs=1e-3) and single.high == pytest.approx(0.745, abs=1e-3)
    assert (found.rates["count"].low, found.rates["count"].high) == (0.0, 1.0)


def test_differences_are_paired() -> None:
    """What both get wrong in the same prompts adds no doubt to their difference."""
    right, wrong = [[True, True]] * 40, [[False, False]] * 40
    apart = report.difference(
        many("tuned", {"single": right + wrong, "count": right}),
        many("base", {"single": right + wrong, "count": wrong}),
    )
    single = apart.points["single"]
    assert single.value == 0 and single.low is not None and single.high is not None
    assert -0.05 < single.low < 0 < single.high < 0.05
    assert apart.points["all"].value == 0.5
    assert "| tuned - base | +0.0 (-4.6 to +4.6) | +100.0 (+82.5 to +100.0) | +50.0" in report.difference_table([apart])


def test_every_table_gives_its_number_of_prompts() -> None:
    methods = {"base": many("base", HALF), "tuned": many("tuned", ALL)}
    results = report.results(methods)
    text = report.tables(results, [report.difference(methods["tuned"], methods["base"])])
    assert text.count("| single (n = 4) | count (n = 2) | all (n = 6) |") == 2
    fewer = report.results({**methods, "tuned": many("tuned", {**ALL, "single": ALL["single"][:2]})})
    assert "tuned: 4 prompts in all." in report.tables(fewer, [])


def test_one_prompt_is_not_certain() -> None:
    (found,) = report.results({"base": many("base", {"single": [[True] * 4]})})
    assert report.rate_table([found]).splitlines()[-1].startswith("| base | 100.0 (20.7 to 100.0) |")


def test_what_was_not_drawn_from_the_same_noise_is_not_compared() -> None:
    whole = lines("base", HALF)
    for other in (whole[1:], [row("base", "single", 0, 0, True, noise=5), *whole[1:]]):
        with pytest.raises(UserError, match="tuned and base cannot be compared: picture 0 of single-0-0000"):
            report.difference(many("tuned", HALF), MethodResults.of(other))


COMMITTED = Path(__file__).parents[3] / "docs/results/benchmark"


def test_the_committed_rates_and_intervals_follow_from_the_committed_summary() -> None:
    saved = read_summary(COMMITTED)
    lines = [json.loads(line) for line in (COMMITTED / "summary.jsonl").read_text().splitlines()]
    for result in saved.results:
        own: dict[str, dict[str, float]] = {each: {} for each in result.rates if each != report.OVERALL}
        for line in lines:
            if line["method"] == result.method:
                own[line["category"]][line["prompt"]] = sum(line["right"]) / len(line["right"])
        strata = {category: [means[prompt] for prompt in sorted(means)] for category, means in own.items()}
        for category, rate in result.rates.items():
            values = list(strata.values()) if category == report.OVERALL else [strata[category]]
            estimate = bootstrap(values, PROPORTION)
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((rate.value, rate.low, rate.high))
