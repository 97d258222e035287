"""A second judge of the same images: its rates beside the first judge's, and how far the two agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpt.errors import UserError
from dpt.evaluation.bench.columns import UNJUDGED, Booleans, MethodResults
from dpt.evaluation.bench.tables import (
    Difference,
    Result,
    compute_results,
    difference_table,
    paired_difference,
    rate_table,
)
from dpt.intervals import PROPORTION, Estimate, bootstrap


@dataclass(frozen=True)
class JudgeAgreement:
    """How far two judges agree on the images of a method."""

    method: str
    images: int
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    rate: Estimate
    """The share of images on which they agree."""

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa; None if both judges give every image the same verdict, which leaves it undefined."""
        first = (self.both_right + self.only_first_right) / self.images
        second = (self.both_right + self.only_second_right) / self.images
        by_chance = first * second + (1 - first) * (1 - second)
        observed = (self.both_right + self.both_wrong) / self.images
        return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)


@dataclass(frozen=True)
class SecondJudgement:
    detector: str
    """The identity of the second judge."""
    results: Sequence[Result]
    differences: Sequence[Difference]
    agreements: Sequence[JudgeAgreement]

    @property
    def table(self) -> str:
        parts = [f"Judged again by {self.detector}:", rate_table(self.results)]
        if self.differences:
            parts.append(difference_table(self.differences, self.results[0]))
        return "\n\n".join([*parts, _agreement_table(self.agreements)])


def second_judgement(
    methods: Mapping[str, MethodResults],
    second: Mapping[str, MethodResults],
    detector: str,
    pairs: Sequence[tuple[str, str]],
) -> SecondJudgement:
    """`second`: another judge's results on images of `methods`; `pairs`: (method, baseline) to compare."""
    results = compute_results(second)
    agreements = [agreement(methods[name], second[name]) for name in second]
    differences = [paired_difference(second[name], second[baseline]) for name, baseline in pairs]
    return SecondJudgement(detector, results, differences, agreements)


def agreement(first: MethodResults, second: MethodResults) -> JudgeAgreement:
    passed_first, passed_second = _passed(first), _passed(second)
    images = [
        [(*results.key(line), results.noise_seeds[line]) for line in results.by_key.tolist()]
        for results in (first, second)
    ]
    if images[0] != images[1]:
        raise UserError(f"the two judges did not judge the same images of {first.method}")
    agree = passed_first == passed_second
    values = np.empty(len(first))
    values[first.by_key] = agree
    return JudgeAgreement(
        first.method,
        len(first),
        both_right=int((passed_first & passed_second).sum()),
        only_first_right=int((passed_first & ~passed_second).sum()),
        only_second_right=int((~passed_first & passed_second).sum()),
        both_wrong=int((~passed_first & ~passed_second).sum()),
        rate=bootstrap([np.concatenate(list(first.prompt_means(values).values()))], PROPORTION),
    )


def _passed(results: MethodResults) -> Booleans:
    """The verdicts, sorted by prompt and index."""
    if (results.passed == UNJUDGED).any():
        raise UserError(f"not all images of {results.method} are judged by both judges")
    return results.passed[results.by_key] == 1


def _agreement_table(agreements: Sequence[JudgeAgreement]) -> str:
    lines = [
        "| method | judges agree | Cohen's kappa | both right | only the first | only the second | both wrong |",
        "|---" * 7 + "|",
    ]
    for found in agreements:
        kappa = "" if found.kappa is None else f"{found.kappa:.3f}"
        counts = (found.both_right, found.only_first_right, found.only_second_right, found.both_wrong)
        cells = (found.method, found.rate.percent, kappa, *map(str, counts))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
