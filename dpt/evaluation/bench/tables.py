"""Tables of rates and of paired differences, counted from the results of each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpt.errors import UserError
from dpt.evaluation.bench.results import ImageResult
from dpt.intervals import Estimate, bootstrap, bootstrap_ratio

SR2D = "sr2d"

RELATIONS = ("left", "right", "above", "below")


def visor(rows: Sequence[ImageResult]) -> dict[str, Estimate]:
    """Over the prompts with a relation; a prompt, not a picture, is what is drawn independently.

    OA: both objects are there. uncond: and lie as asked. cond: lie as asked, of those where both are there (0 where
    there are none). VISOR_n: prompts of which at least n pictures show both as asked.
    """
    by_prompt: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        if row.category in RELATIONS:
            by_prompt.setdefault(row.prompt_id, []).append(_both_and_placed(row))
    if not by_prompt:
        return {}
    both = np.array([np.mean([there for there, _ in seen]) for seen in by_prompt.values()])
    placed = np.array([np.mean([right for _, right in seen]) for seen in by_prompt.values()])
    found = {
        "OA": bootstrap([both]),
        "VISOR uncond": bootstrap([placed]),
        "VISOR cond": bootstrap_ratio(placed, both),
    }
    pictures = {len(seen) for seen in by_prompt.values()}
    for n in range(1, min(pictures) + 1 if len(pictures) == 1 else 1):
        enough = [sum(right for _, right in seen) >= n for seen in by_prompt.values()]
        found[f"VISOR {n} of {min(pictures)}"] = bootstrap([enough])
    return found


def _both_and_placed(row: ImageResult) -> tuple[bool, bool]:
    both = all(atom.met for atom in row.atoms if atom.sort == "count")
    return both, both and all(atom.met for atom in row.atoms if atom.sort == "relation")


OVERALL = "all"

SCORES = {"clip": "CLIP cosine", "itm": "ITM score"}

NOT_HELD_OUT = (
    "The ITM score is not held out: corrected and chosen pictures are made by such a score, "
    "and of these it proves nothing."
)

By = Mapping[str, np.ndarray]
"""For each category, one value of each of its prompts, in a fixed order: the mean over the prompt's pictures."""


@dataclass(frozen=True)
class Result:
    method: str
    rates: dict[str, Estimate]
    """By category, and over all of them with the same weight each; nothing where nothing was judged."""
    readable: Estimate | None
    """Of all objects, those that the detector could name; None for one that is told what to look for."""
    clip: dict[str, Estimate] = field(default_factory=dict)
    """Mean cosine of picture and prompt, by category and over all."""
    itm: dict[str, Estimate] = field(default_factory=dict)
    """Mean matching score of an adapter."""
    measures: dict[str, Estimate] = field(default_factory=dict)
    """The suite's own."""
    pictures: int = 0
    clipped: int = 0
    outside: int = 0


@dataclass(frozen=True)
class Difference:
    method: str
    baseline: str
    points: dict[str, Estimate]
    clip: dict[str, Estimate] = field(default_factory=dict)
    itm: dict[str, Estimate] = field(default_factory=dict)


def results(rows: Mapping[str, Sequence[ImageResult]], suite: str = "") -> list[Result]:
    first = next(iter(rows), "")
    for method, own in rows.items():
        if {row.category for row in own} != {row.category for row in rows[first]}:
            raise UserError(f"{first} and {method} were not judged in the same categories: they cannot share a table")
    found = [_result(method, own, suite) for method, own in rows.items()]
    for one in found:
        if (bool(one.rates), bool(one.clip)) != (bool(found[0].rates), bool(found[0].clip)):
            raise UserError(f"{first} and {one.method} were not judged and scored alike: they cannot share a table")
    return found


def _result(method: str, rows: Sequence[ImageResult], suite: str) -> Result:
    rates, clip, itm = (_estimates(_by_prompt(rows, value)) if value else {} for value in _values(rows))
    measures = visor(rows) if suite == SR2D and rates else {}
    cut = sum(row.clipped for row in rows), sum(row.outside for row in rows)
    return Result(method, rates, _readable(rows) if rates else None, clip, itm, measures, len(rows), *cut)


def difference(method: Sequence[ImageResult], baseline: Sequence[ImageResult]) -> Difference:
    """Prompt by prompt, since both drew the same prompts from the same noise."""
    _check_paired(method, baseline)
    pairs = zip(_values(method), _values(baseline), strict=True)
    points, clip, itm = (
        _estimates(_apart(_by_prompt(method, one), _by_prompt(baseline, other))) if one and other else {}
        for one, other in pairs
    )
    return Difference(method[0].method, baseline[0].method, points, clip, itm)


def _apart(one: By, other: By) -> By:
    return {category: one[category] - other[category] for category in one}


def _check_paired(method: Sequence[ImageResult], baseline: Sequence[ImageResult]) -> None:
    noise = [{(*row.key, row.noise_seed) for row in rows} for rows in (method, baseline)]
    if odd := noise[0] ^ noise[1]:
        prompt, index, _ = min(odd)
        names = f"{method[0].method} and {baseline[0].method}"
        raise UserError(f"{names} cannot be compared: picture {index} of {prompt} is not in both, from the same noise")


Value = Callable[[ImageResult], float]


def _values(rows: Sequence[ImageResult]) -> tuple[Value | None, Value | None, Value | None]:
    """How to read off a line whether it is right and how near it is to its text, where all lines say so."""
    judged = _all_or_none(rows, lambda row: row.passed is not None, "a verdict")
    near = _all_or_none(rows, lambda row: row.clip is not None, "a CLIP score")
    matching = _all_or_none(rows, lambda row: row.itm is not None, "an ITM score")
    return (
        (lambda row: float(bool(row.passed))) if judged else None,
        (lambda row: row.clip or 0.0) if near else None,
        (lambda row: row.itm or 0.0) if matching else None,
    )


def _all_or_none(rows: Sequence[ImageResult], has: Callable[[ImageResult], bool], what: str) -> bool:
    """Some without it would drop out of the mean unseen."""
    without = [row for row in rows if not has(row)]
    if not rows:
        raise UserError("a method without a single line cannot be counted")
    if without and len(without) < len(rows):
        row = without[0]
        raise UserError(f"picture {row.index} of {row.prompt_id} by {row.method} has not {what}, and others have")
    return not without


def _by_prompt(rows: Sequence[ImageResult], value: Value) -> dict[str, np.ndarray]:
    found: dict[str, dict[str, list[float]]] = {row.category: {} for row in rows}
    for row in sorted(rows, key=lambda row: row.key):
        found[row.category].setdefault(row.prompt_id, []).append(value(row))
    return {
        category: np.array([np.mean(pictures) for pictures in prompts.values()]) for category, prompts in found.items()
    }


def _estimates(values: By) -> dict[str, Estimate]:
    single = {category: bootstrap([shares]) for category, shares in values.items()}
    return {**single, OVERALL: bootstrap(list(values.values()))}


def _readable(rows: Sequence[ImageResult]) -> Estimate | None:
    if any(row.atoms and row.atoms[0].sort != "readable" for row in rows):
        return None
    pictures = [(len(row.objects), len(row.objects) + row.unreadable) for row in rows]
    named, there = (sum(column) for column in zip(*pictures, strict=True))
    return Estimate(named / there if there else 0.0, None, None)


def tables(found: Sequence[Result], apart: Sequence[Difference]) -> str:
    """All that there is to count, as Markdown."""
    parts = [
        table(found) if found[0].rates else "",
        difference_table(apart) if apart and apart[0].points else "",
        _measure_table(found) if found[0].measures else "",
        *(_score_table(name, title, found, apart) for name, title in SCORES.items()),
        NOT_HELD_OUT if found[0].itm else "",
        "\n".join(_cut_boxes(one) for one in found if one.clipped or one.outside),
    ]
    return "\n\n".join(part for part in parts if part) or "Nothing was judged or scored: there is nothing to count."


def table(found: Sequence[Result]) -> str:
    categories = list(found[0].rates)
    readable = ["objects readable"] if found[0].readable else []
    lines = _heading("method", *categories, *readable)
    for one in found:
        last = [one.readable.percent] if one.readable else []
        lines.append(_line(one.method, *(one.rates[c].percent for c in categories), *last))
    return "\n".join(lines)


def difference_table(found: Sequence[Difference]) -> str:
    categories = list(found[0].points)
    lines = _heading("difference, points", *categories)
    lines += [_line(_pair(one), *(one.points[category].signed for category in categories)) for one in found]
    return "\n".join(lines)


def _measure_table(found: Sequence[Result]) -> str:
    lines = _heading("method", *found[0].measures)
    lines += [_line(one.method, *(value.percent for value in one.measures.values())) for one in found]
    return "\n".join(lines)


def _score_table(name: str, title: str, found: Sequence[Result], apart: Sequence[Difference]) -> str:
    """Of those that were scored: some may have been kept without."""
    scored = {one.method: getattr(one, name) for one in found if getattr(one, name)}
    differences = {_pair(one): getattr(one, name) for one in apart if getattr(one, name)}
    if not scored:
        return ""
    categories = list(next(iter(scored.values())))
    lines = _heading(title, *categories)
    lines += [_line(method, *(own[category].plain for category in categories)) for method, own in scored.items()]
    lines += [_line(pair, *(own[each].plain_signed for each in categories)) for pair, own in differences.items()]
    return "\n".join(lines)


def _cut_boxes(one: Result) -> str:
    return f"{one.method}: {one.clipped} boxes were cut to the picture, {one.outside} lay outside and do not count."


def _pair(one: Difference) -> str:
    return f"{one.method} - {one.baseline}"


def _heading(*cells: str) -> list[str]:
    return [_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
