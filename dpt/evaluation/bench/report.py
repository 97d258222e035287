"""Tables of rates and of paired differences, counted from the lines of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpt.errors import UserError
from dpt.evaluation.bench.rows import Row
from dpt.evaluation.intervals import Estimate, bootstrap

OVERALL = "all"
By = Mapping[str, np.ndarray]
"""For each category, the share of right pictures of each of its prompts, in a fixed order."""


@dataclass(frozen=True)
class Result:
    method: str
    rates: dict[str, Estimate]
    """By category, and over all of them with the same weight each."""
    readable: Estimate
    """Of all objects, those that the detector could name."""


@dataclass(frozen=True)
class Difference:
    method: str
    baseline: str
    points: dict[str, Estimate]


def results(rows: Mapping[str, Sequence[Row]]) -> list[Result]:
    return [Result(method, _estimates(_by_prompt(own)), _readable(own)) for method, own in rows.items()]


def difference(method: Sequence[Row], baseline: Sequence[Row]) -> Difference:
    """Prompt by prompt, since both drew the same prompts from the same noise."""
    _check_paired(method, baseline)
    one, other = _by_prompt(method), _by_prompt(baseline)
    apart = {category: one[category] - other[category] for category in one}
    return Difference(method[0].method, baseline[0].method, _estimates(apart))


def _check_paired(method: Sequence[Row], baseline: Sequence[Row]) -> None:
    noise = [{(*row.key, row.noise_seed) for row in rows} for rows in (method, baseline)]
    if odd := noise[0] ^ noise[1]:
        prompt, index, _ = min(odd)
        names = f"{method[0].method} and {baseline[0].method}"
        raise UserError(f"{names} cannot be compared: picture {index} of {prompt} is not in both, from the same noise")


def _by_prompt(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    passed: dict[str, dict[str, list[bool]]] = {row.category: {} for row in rows}
    for row in sorted(rows, key=lambda row: row.key):
        passed[row.category].setdefault(row.prompt_id, []).append(row.passed)
    return {
        category: np.array([np.mean(pictures) for pictures in prompts.values()]) for category, prompts in passed.items()
    }


def _estimates(values: By) -> dict[str, Estimate]:
    single = {category: bootstrap([shares]) for category, shares in values.items()}
    return {**single, OVERALL: bootstrap(list(values.values()))}


def _readable(rows: Sequence[Row]) -> Estimate:
    pictures = [(len(row.objects), len(row.objects) + row.unreadable) for row in rows]
    named, there = (sum(column) for column in zip(*pictures, strict=True))
    return Estimate(named / there if there else 0.0, None, None)


def table(found: Sequence[Result]) -> str:
    categories = list(found[0].rates)
    lines = [_line("method", *categories, "objects readable"), "|---" * (len(categories) + 2) + "|"]
    lines += [_line(one.method, *(one.rates[c].percent for c in categories), one.readable.percent) for one in found]
    return "\n".join(lines)


def difference_table(found: Sequence[Difference]) -> str:
    categories = list(found[0].points)
    lines = [_line("difference, points", *categories), "|---" * (len(categories) + 1) + "|"]
    lines += [
        _line(f"{one.method} - {one.baseline}", *(one.points[category].signed for category in categories))
        for one in found
    ]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
