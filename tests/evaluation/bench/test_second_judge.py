"""Two judges of the same images: rates, paired differences and agreement, checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpt.errors import UserError
from dpt.evaluation.bench.columns import MethodResults
from dpt.evaluation.bench.verdicts import agreement, second_judgement
from tests.evaluation.bench.rows import row


def judged(method: str, verdicts: str, order: str = "abcdefgh") -> MethodResults:
    """One image per prompt: r is right, w wrong; the lines are in the given order of prompts."""
    by_prompt = dict(zip("abcdefgh", verdicts, strict=False))
    return MethodResults.of([row(method, prompt, passed=by_prompt[prompt] == "r") for prompt in order])


def test_agreement_is_counted_image_by_image_whatever_the_order_of_lines() -> None:
    first, second = judged("base", "rrrrwwww"), judged("base", "rrrwrwww", order="hgfedcba")
    found = agreement(first, second)
    counts = (found.both_right, found.only_first_right, found.only_second_right, found.both_wrong)
    assert counts == (3, 1, 1, 3) and found.rate.value == 0.75
    # Each judge calls half of the images right, so half of the agreement is chance: (0.75 - 0.5) / 0.5.
    assert found.kappa == pytest.approx(0.5)
    assert agreement(first, judged("base", "wwwwrrrr")).kappa == pytest.approx(-1)
    assert agreement(judged("base", "rrrrrrrr"), judged("base", "rrrrrrrr")).kappa is None


def test_rates_and_differences_are_those_of_the_second_judge() -> None:
    first = {"base": judged("base", "wwwwwwww"), "new": judged("new", "rrrrrrrr")}
    second = {"base": judged("base", "rrwwwwww"), "new": judged("new", "rrrrwwww")}
    found = second_judgement(first, second, "reader v1", [("new", "base")])
    assert [result.rates["all"].value for result in found.results] == [0.25, 0.5]
    (difference,) = found.differences
    assert np.isclose(difference.points["all"].value, 0.25)
    assert "Judged again by reader v1:" in found.table and "| new - base | +25.0" in found.table
    assert "| base | 75.0" in found.table, "the agreement: all but the two that only the second judge calls right"


def test_other_images_and_missing_verdicts_are_errors() -> None:
    first = judged("base", "rrrrwwww")
    with pytest.raises(UserError, match="did not judge the same images of base"):
        agreement(first, judged("base", "rrrr", order="abcd"))
    missing = MethodResults.of([row("base", prompt, passed=None) for prompt in "abcdefgh"])
    with pytest.raises(UserError, match="not all images of base are judged"):
        agreement(first, missing)
