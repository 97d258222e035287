"""Tables computed from results: rates, paired differences, and results that cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dpt.data.images import is_whole_image
from dpt.errors import UserError
from dpt.evaluation.bench import tables as report
from dpt.evaluation.bench.columns import PLOT, Cost, MethodResults, plot, read_costs, record_training
from dpt.evaluation.bench.results import ImageResult, JudgedAtom
from dpt.evaluation.bench.verdicts import read_summary, summary, verdict_change, verdicts_of
from dpt.intervals import PROPORTION, bootstrap


def row(method: str, category: str, number: int, index: int, passed: bool, noise: int = 0) -> ImageResult:
    return ImageResult(
        method, f"{category}-0-{number:04d}", index, category, "a red circle", False, noise, passed, (), (), 0
    )


def method_results(method: str, rights: dict[str, list[list[bool]]]) -> MethodResults:
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


def test_categories_have_equal_weight() -> None:
    (result,) = report.compute_results({"base": method_results("base", HALF)})
    assert list(result.rates) == ["single", "count", "all"]
    assert [rate.value for rate in result.rates.values()] == [0.5, 0.5, 0.5]
    (result,) = report.compute_results({"base": method_results("base", ALL)})
    assert result.rates["all"].value == 0.75


def test_the_bootstrap_resamples_prompts_not_pictures() -> None:
    """Four prompts, half right, give a narrow interval; two prompts, one of them right, give the full range."""
    (result,) = report.compute_results({"base": method_results("base", HALF)})
    single = result.rates["single"]
    assert single.low == pytest.approx(0.255, abs=1e-3) and single.high == pytest.approx(0.745, abs=1e-3)
    assert (result.rates["count"].low, result.rates["count"].high) == (0.0, 1.0)


def test_differences_are_paired() -> None:
    """Prompts that both methods get wrong do not widen the interval of the difference."""
    right, wrong = [[True, True]] * 40, [[False, False]] * 40
    difference = report.paired_difference(
        method_results("tuned", {"single": right + wrong, "count": right}),
        method_results("base", {"single": right + wrong, "count": wrong}),
    )
    single = difference.points["single"]
    assert single.value == 0 and single.low is not None and single.high is not None
    assert -0.05 < single.low < 0 < single.high < 0.05
    assert difference.points["all"].value == 0.5
    assert "| tuned - base | +0.0 (-4.6 to +4.6) | +100.0 (+82.5 to +100.0) | +50.0" in report.difference_table(
        [difference]
    )


def test_every_table_gives_its_number_of_prompts() -> None:
    methods = {"base": method_results("base", HALF), "tuned": method_results("tuned", ALL)}
    results = report.compute_results(methods)
    text = report.tables(results, [report.paired_difference(methods["tuned"], methods["base"])])
    assert text.count("| single (n = 4) | count (n = 2) | all (n = 6) |") == 2
    fewer = report.compute_results({**methods, "tuned": method_results("tuned", {**ALL, "single": ALL["single"][:2]})})
    assert "tuned: 4 prompts in all." in report.tables(fewer, [])


def test_a_single_prompt_has_a_wilson_interval() -> None:
    (result,) = report.compute_results({"base": method_results("base", {"single": [[True] * 4]})})
    assert report.rate_table([result]).splitlines()[-1].startswith("| base | 100.0 (20.7 to 100.0) |")


def test_pictures_from_other_noise_are_not_compared() -> None:
    whole = lines("base", HALF)
    other_noise = [row("base", "single", 0, 0, True, noise=5), *whole[1:]]
    other_prompts = [line for line in whole if line.prompt_id != whole[0].prompt_id]
    for other, why in (
        (other_noise, "image 0 of single-0-0000 does not"),
        (other_prompts, "single-0-0000 has no image that all"),
    ):
        with pytest.raises(UserError, match=f"cannot be compared: .*{why}"):
            report.paired_difference(method_results("tuned", HALF), MethodResults.of(other))


def test_methods_with_fewer_images_are_compared_on_those_that_both_have() -> None:
    tuned = [line for line in lines("tuned", {"single": [[True, False], [True, False]]}) if line.index == 0]
    results = {
        "base": method_results("base", {"single": [[False, True], [True, True]]}),
        "tuned": MethodResults.of(tuned),
    }
    difference = report.paired_difference(results["tuned"], results["base"])
    assert difference.points["single"].value == 0.5 and difference.images == 2
    computed = report.compute_results(results)
    assert "| method | images | single | right |" in report.one_table(computed, {})
    text = report.tables(computed, [difference])
    assert "Over the images that both methods have: tuned - base (2)." in text
    pooled = report.mean_over_seeds("both", list(results.values()))
    assert pooled.passed.tolist() == [0.5, 1.0]
    unfinished = method_results("tuned", {"single": [[True, False], [True]]})
    difference = report.paired_difference(unfinished, results["base"])
    assert difference.images == 3 and difference.points["single"].value == 0.0


def test_images_are_compared_by_their_number() -> None:
    right = {"single": [[False, True], [True, True]]}
    whole, gap = method_results("base", right), MethodResults.of(lines("base", right)[1:])
    saved = [json.loads(line).get("images") for line in summary({"base": gap})]
    assert saved == [[1], None]
    change = verdict_change(verdicts_of(whole), verdicts_of(gap))
    assert (change.images, change.became_right, change.became_wrong, change.is_part) == (3, 0, 0, True)


def test_a_category_may_have_the_name_of_a_column() -> None:
    (result,) = report.compute_results({"base": method_results("base", {"left": [[True]], "right": [[False]]})})
    heading, _, row = report.one_table([result], {}).splitlines()
    assert heading.startswith("| method | left | right | right, all |") and row.startswith(
        "| base | 100.0 | 0.0 | 50.0"
    )


COMMITTED = Path(__file__).parents[3] / "docs/results/benchmark"


def test_the_committed_rates_and_intervals_follow_from_the_committed_summary() -> None:
    saved = read_summary(COMMITTED)
    lines = [json.loads(line) for line in (COMMITTED / "summary.jsonl").read_text().splitlines()]
    for result in saved.results:
        means: dict[str, dict[str, float]] = {name: {} for name in result.rates if name != report.OVERALL}
        for line in lines:
            if line["method"] == result.method:
                means[line["category"]][line["prompt"]] = sum(line["right"]) / len(line["right"])
        strata = {
            category: [by_prompt[prompt] for prompt in sorted(by_prompt)] for category, by_prompt in means.items()
        }
        for category, rate in result.rates.items():
            values = list(strata.values()) if category == report.OVERALL else [strata[category]]
            estimate = bootstrap(values, PROPORTION)
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((rate.value, rate.low, rate.high))


def test_claims_met_count_atoms_where_the_rate_counts_images() -> None:
    atoms = (JudgedAtom("readable", "", True), JudgedAtom("count", "", True), JudgedAtom("relation", "", False))
    half_met = [replace(line, atoms=atoms[: 3 - line.index]) for line in lines("base", {"single": [[False, True]] * 3})]
    (result,) = report.compute_results({"base": MethodResults.of(half_met)})
    assert result.claims_met is not None and result.claims_met.value == pytest.approx((2 / 3 + 1) / 2)
    assert result.rates["all"].value == 0.5


def test_the_mean_over_training_seeds_is_paired_with_the_baseline() -> None:
    one, two = method_results("one", {"single": [[True], [False]]}), method_results("two", {"single": [[True], [True]]})
    both = report.mean_over_seeds("both", [one, two])
    (result,) = report.compute_results({"both": both})
    assert result.rates["single"].value == 0.75
    difference = report.paired_difference(both, one)
    assert difference.points["single"].value == 0.25
    with pytest.raises(UserError, match="single-0-0002 has no image that all of them have"):
        report.mean_over_seeds("both", [one, method_results("two", {"single": [[True], [True], [True]]})])


def test_cost_is_read_from_every_batch_once(tmp_path: Path) -> None:
    def line(first: str, images: int, passes: float, seconds: float) -> str:
        return json.dumps({"first": [first, 0], "images": images, "passes": passes, "seconds": seconds}) + "\n"

    file = tmp_path / "base.cost.jsonl"
    batches = [line("a", 16, 640, 1.0), line("b", 16, 640, 3.2), line("c", 8, 480, 0.8), line("a", 16, 640, 4.8)]
    file.write_text("".join(batches) + '{"first": ["d", 0], "ima')
    assert read_costs(tmp_path, ["base", "other"]) == {"base": Cost(44.0, 0.2)}
    results = {"base": method_results("base", HALF)}
    table = report.tables(report.compute_results(results, costs=read_costs(tmp_path, results)), [])
    assert "| base |  | 44.0 | 0.20 |" in table
    assert not plot(report.compute_results(results, costs=read_costs(tmp_path, results)), tmp_path / PLOT)
    file.write_text("".join(batches))
    record_training(tmp_path / "base.jsonl", 25_600)
    costs = read_costs(tmp_path, ["base"])
    assert costs == {"base": Cost(44.0, 0.2, 25_600)}
    in_one = report.one_table(report.compute_results(results, costs=costs), {})
    assert in_one.splitlines()[0].endswith("| trained on |") and in_one.endswith("| 25,600 |")
    results["best4"] = method_results("best4", ALL)
    assert plot(report.compute_results(results, costs={"base": Cost(40, 1), "best4": Cost(164, 4)}), tmp_path / PLOT)
    assert is_whole_image(tmp_path / PLOT)
    file.write_text("[]\n")
    with pytest.raises(UserError, match="line 1 is not the cost of a batch"):
        read_costs(tmp_path, ["base"])
