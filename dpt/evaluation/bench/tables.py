"""Tables of rates and of paired differences, computed from the results of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dpt.errors import UserError
from dpt.evaluation.bench.columns import NO_COSTS, OVERALL, UNJUDGED, Booleans, Cost, Floats, MethodResults
from dpt.intervals import DIFFERENCE, PROPORTION, Bounds, Estimate, bootstrap, bootstrap_ratio

if TYPE_CHECKING:
    from dpt.evaluation.fidelity import Fidelity

SR2D = "sr2d"

RELATIONS = ("left", "right", "above", "below")

SCORES = {"clip": "CLIP cosine", "itm": "ITM score", "hps": "preference score"}

NOT_HELD_OUT = (
    "The ITM score is not held out, unless its adapter reads another model (--itm_model): corrected and chosen "
    "pictures were optimised for such a score, so it is no evidence for them."
)


@dataclass(frozen=True)
class Result:
    method: str
    rates: dict[str, Estimate]
    """By category, and over all categories with equal weights; empty where nothing was judged."""
    readable: Estimate | None
    """The proportion of objects that the detector could name; None for a detector that takes queries."""
    clip: dict[str, Estimate] = field(default_factory=dict)
    """Mean cosine of picture and prompt, by category and over all."""
    itm: dict[str, Estimate] = field(default_factory=dict)
    """Mean matching score of an adapter."""
    hps: dict[str, Estimate] = field(default_factory=dict)
    """Mean preference score."""
    measures: dict[str, Estimate] = field(default_factory=dict)
    """The suite's own metrics, as VISOR of SR2D."""
    pictures: int = 0
    clipped: int = 0
    outside: int = 0
    claims_met: Estimate | None = None
    """Mean share of an image's conditions (atoms) that it meets, over categories with equal weights."""
    cost: Cost | None = None
    prompts: dict[str, int] = field(default_factory=dict)
    """Number of prompts by category and over all: the n of the intervals."""


@dataclass(frozen=True)
class Difference:
    method: str
    baseline: str
    points: dict[str, Estimate]
    clip: dict[str, Estimate] = field(default_factory=dict)
    itm: dict[str, Estimate] = field(default_factory=dict)
    hps: dict[str, Estimate] = field(default_factory=dict)
    images: int | None = None
    """The number of images that both methods have, if one of them has more."""


def compute_results(
    methods: Mapping[str, MethodResults], suite: str = "", costs: Mapping[str, Cost] = NO_COSTS
) -> list[Result]:
    first = next(iter(methods), "")
    for method, results in methods.items():
        if set(results.categories) != set(methods[first].categories):
            raise UserError(
                f"{first} and {method} were not judged in the same categories and cannot share a table: finish the "
                "run or the judging, or pass the finished methods as --methods"
            )
    computed = [_result(method, results, suite, costs) for method, results in methods.items()]
    for result in computed:
        if (bool(result.rates), bool(result.clip)) != (bool(computed[0].rates), bool(computed[0].clip)):
            raise UserError(
                f"{first} and {result.method} do not have the same verdicts and scores and cannot share a table"
            )
    return computed


def _result(method: str, results: MethodResults, suite: str, costs: Mapping[str, Cost]) -> Result:
    values = _values(results)
    rates = _estimates(results.prompt_means(values["passed"]), PROPORTION) if "passed" in values else {}
    clip, itm, hps = (_estimates(results.prompt_means(values[name])) if name in values else {} for name in SCORES)
    counts = {category: len(means) for category, means in results.prompt_means(results.passed).items()}
    return Result(
        method=method,
        rates=rates,
        readable=_readable(results) if rates else None,
        clip=clip,
        itm=itm,
        hps=hps,
        measures=visor(results) if suite == SR2D and rates else {},
        pictures=len(results),
        clipped=int(results.clipped.sum()),
        outside=int(results.outside.sum()),
        claims_met=_claims_met(results),
        cost=costs.get(method),
        prompts={**counts, OVERALL: sum(counts.values())},
    )


def paired_difference(method: MethodResults, baseline: MethodResults) -> Difference:
    """Differences paired by prompt, over the images that both have: the same prompts and the same initial noise."""
    images = max(len(method), len(baseline))
    method, baseline = shared_images(method, baseline)
    values, baseline_values = _values(method), _values(baseline)
    points, clip, itm, hps = (
        _estimates(_subtract(method.prompt_means(values[name]), baseline.prompt_means(baseline_values[name])), bounds)
        if name in values and name in baseline_values
        else {}
        for name, bounds in (("passed", DIFFERENCE), ("clip", None), ("itm", None), ("hps", None))
    )
    fewer = len(method) if len(method) < images else None
    return Difference(method.method, baseline.method, points, clip, itm, hps, fewer)


def mean_over_seeds(name: str, parts: Sequence[MethodResults]) -> MethodResults:
    """The trainings of one method with several seeds as one method: each image counts by their mean verdict."""
    shared = list(shared_images(*parts))
    verdicts = np.array([part.passed for part in shared])
    if (verdicts == UNJUDGED).any():
        raise UserError(f"--seeds {name}: not every image was judged")
    return shared[0].with_verdicts(name, verdicts.mean(0))


def _subtract(values: Mapping[str, Floats], baseline: Mapping[str, Floats]) -> dict[str, Floats]:
    return {category: values[category] - baseline[category] for category in values}


def shared_images(*methods: MethodResults) -> tuple[MethodResults, ...]:
    """The results for the images that all methods have, in one order.

    A method may have fewer images of each prompt than another, or be unfinished. Raises if an image has other noise, or
    if a prompt is missing.
    """
    seeds = [dict(zip(results.line_of, results.noise_seeds, strict=True)) for results in methods]
    keys = [key for key in seeds[0] if all(key in of_method for of_method in seeds)]
    prompts = {prompt for prompt, _ in keys}
    for results, of_method in zip(methods, seeds, strict=True):
        if other := [key for key in keys if of_method[key] != seeds[0][key]]:
            raise UserError(
                f"{results.method} and {methods[0].method} cannot be compared: image {other[0][1]} of {other[0][0]} "
                "does not have the same noise seed in both"
            )
        if missing := set(results.prompt_ids) - prompts:
            raise UserError(
                f"{', '.join(one.method for one in methods)} cannot be compared: {min(missing)} has no image that all "
                "of them have. Finish the run or the judging, or pass the finished methods as --methods"
            )
    return tuple(results.only(np.array([results.line_of[key] for key in keys], np.int64)) for results in methods)


def _values(results: MethodResults) -> dict[str, npt.ArrayLike]:
    """The columns with values. Raises if only some of the lines have a value."""
    columns = {
        "passed": (results.passed, results.passed != UNJUDGED, "verdict"),
        "clip": (results.clip, ~np.isnan(results.clip), "CLIP score"),
        "itm": (results.itm, ~np.isnan(results.itm), "ITM score"),
        "hps": (results.hps, ~np.isnan(results.hps), "preference score"),
    }
    return {name: values for name, (values, has, what) in columns.items() if _all_or_none(results, has, what)}


def _all_or_none(results: MethodResults, has: Booleans, what: str) -> bool:
    if has.any() and not has.all():
        prompt, index = results.key(int(np.argmin(has)))
        raise UserError(f"image {index} of {prompt} by {results.method} has no {what}, unlike other images")
    return bool(has.all())


def _estimates(values: Mapping[str, Floats], bounds: Bounds | None = None) -> dict[str, Estimate]:
    by_category = {category: bootstrap([means], bounds) for category, means in values.items()}
    return {**by_category, OVERALL: bootstrap(list(values.values()), bounds)}


def _readable(results: MethodResults) -> Estimate | None:
    if results.queried:
        return None
    named = int(results.objects.sum())
    total = named + int(results.unreadable.sum())
    return Estimate(named / total if total else 0.0, None, None)


def _claims_met(results: MethodResults) -> Estimate | None:
    if np.isnan(results.claims_met).any():
        return None
    return _estimates(results.prompt_means(results.claims_met), PROPORTION)[OVERALL]


def visor(results: MethodResults) -> dict[str, Estimate]:
    """The metrics of SR2D, over the prompts with a relation.

    OA: both objects are detected. uncond: and the relation holds. cond: the relation holds, among pictures with both
    objects. VISOR_n: prompts of which at least n pictures show both objects in the relation.
    """
    related = np.isin(results.category, [number for number, name in enumerate(results.categories) if name in RELATIONS])
    if not related.any():
        return {}
    both = results.counts_met[related]
    placed = both & results.relations_met[related]
    _, prompt = np.unique(results.prompt[related], return_inverse=True)
    pictures = np.bincount(prompt)
    both_means, placed_means = (np.bincount(prompt, values) / pictures for values in (both, placed))
    measures = {
        "OA": bootstrap([both_means], PROPORTION),
        "VISOR uncond": bootstrap([placed_means], PROPORTION),
        "VISOR cond": bootstrap_ratio(placed_means, both_means),
    }
    if len(set(pictures.tolist())) == 1:
        n_placed = np.bincount(prompt, placed)
        for n in range(1, int(pictures[0]) + 1):
            measures[f"VISOR {n} of {pictures[0]}"] = bootstrap([n_placed >= n], PROPORTION)
    return measures


def tables(computed: Sequence[Result], differences: Sequence[Difference]) -> str:
    """All tables, as Markdown."""
    parts = [
        rate_table(computed) if computed[0].rates else "",
        difference_table(differences, _reference(computed)) if differences and differences[0].points else "",
        _measure_table(computed) if computed[0].measures else "",
        _cost_table(computed),
        *(_score_table(name, title, computed, differences) for name, title in SCORES.items()),
        _sizes(computed),
        NOT_HELD_OUT if computed[0].itm else "",
        "\n".join(_cut_boxes(result) for result in computed if result.clipped or result.outside),
    ]
    judged = any(result.rates or result.clip or result.itm or result.hps for result in computed)
    return "\n\n".join(part for part in parts if part) if judged else "Nothing was judged or scored."


def rate_table(computed: Sequence[Result]) -> str:
    categories = list(computed[0].rates)
    readable = ["objects readable"] if computed[0].readable else []
    lines = _heading("method", *_with_n(categories, _reference(computed)), *readable)
    for result in computed:
        last = [_percent(result.readable)] if readable else []
        lines.append(_line(result.method, *(result.rates[c].percent for c in categories), *last))
    return "\n".join(lines)


def difference_table(differences: Sequence[Difference], like: Result | None = None) -> str:
    categories = list(differences[0].points)
    lines = _heading("difference, points", *_with_n(categories, like))
    lines += [
        _line(_pair(difference), *(difference.points[c].signed for c in categories)) for difference in differences
    ]
    fewer = [f"{_pair(difference)} ({difference.images:,})" for difference in differences if difference.images]
    if fewer:
        lines += ["", f"Over the images that both methods have: {', '.join(fewer)}."]
    return "\n".join(lines)


def _measure_table(computed: Sequence[Result]) -> str:
    n = sum(_reference(computed).prompts.get(relation, 0) for relation in RELATIONS)
    lines = _heading(f"method (n = {n:,})", *computed[0].measures)
    lines += [_line(result.method, *(value.percent for value in result.measures.values())) for result in computed]
    return "\n".join(lines)


def _cost_table(computed: Sequence[Result]) -> str:
    """The share of claims met beside what an image costs, of the methods of which either is known."""
    known = [result for result in computed if result.claims_met or result.cost]
    if not known:
        return ""
    lines = _heading("method", "claims met", "passes per image", "seconds per image")
    for result in known:
        met = result.claims_met.percent if result.claims_met else ""
        cost = (f"{result.cost.passes:.1f}", f"{result.cost.seconds:.2f}") if result.cost else ("", "")
        lines.append(_line(result.method, met, *cost))
    return "\n".join(lines)


def one_table(computed: Sequence[Result], second: Mapping[str, Result], fidelity: Fidelity | None = None) -> str:
    """A line per method with every column that any method has: verdicts of both judges, scores, distances, cost.

    `second`: the results of a second judge by method.
    """
    several = len({result.pictures for result in computed}) > 1
    categories = [name for name in computed[0].rates if name != OVERALL]
    overall = "right" if "right" not in categories else "right, all"
    columns: list[tuple[str, list[str]]] = [
        ("images", [f"{result.pictures:,}" if several else "" for result in computed]),
        *((name, [f"{100 * r.rates[name].value:.1f}" if r.rates else "" for r in computed]) for name in categories),
        (overall, [_percent(result.rates.get(OVERALL)) for result in computed]),
        ("claims met", [_percent(result.claims_met) for result in computed]),
        ("objects readable", [_percent(result.readable) for result in computed]),
        (
            "right, second judge",
            [_percent(second[r.method].rates.get(OVERALL)) if r.method in second else "" for r in computed],
        ),
        *(
            (title, [getattr(r, name)[OVERALL].plain if getattr(r, name) else "" for r in computed])
            for name, title in SCORES.items()
        ),
        (
            "Fréchet distance",
            [
                f"{fidelity.distances[r.method]:.3f}" if fidelity and r.method in fidelity.distances else ""
                for r in computed
            ],
        ),
        ("diversity", [fidelity.diversity_of(r.method) if fidelity else "" for r in computed]),
        ("passes per image", [f"{r.cost.passes:.1f}" if r.cost else "" for r in computed]),
        ("seconds per image", [f"{r.cost.seconds:.2f}" if r.cost else "" for r in computed]),
        ("trained on", [f"{r.cost.training:,}" if r.cost and r.cost.training is not None else "" for r in computed]),
    ]
    known = [(title, cells) for title, cells in columns if any(cells)]
    if not known:
        return ""
    lines = _heading("method", *(title for title, _ in known))
    lines += [_line(r.method, *(cells[k] for _, cells in known)) for k, r in enumerate(computed)]
    return "\n".join(lines)


def _percent(estimate: Estimate | None) -> str:
    return estimate.percent if estimate else ""


def _score_table(name: str, title: str, computed: Sequence[Result], differences: Sequence[Difference]) -> str:
    """A table of the methods with this score; methods of earlier reports may lack it."""
    scored = {result.method: getattr(result, name) for result in computed if getattr(result, name)}
    paired = {_pair(difference): getattr(difference, name) for difference in differences if getattr(difference, name)}
    if not scored:
        return ""
    categories = list(next(iter(scored.values())))
    lines = _heading(title, *_with_n(categories, _reference(computed)))
    lines += [_line(method, *(means[c].plain for c in categories)) for method, means in scored.items()]
    lines += [_line(pair, *(means[c].plain_signed for c in categories)) for pair, means in paired.items()]
    return "\n".join(lines)


def _with_n(categories: Sequence[str], like: Result | None) -> list[str]:
    """Add the number of prompts to the headings, where it is known."""
    prompts = like.prompts if like is not None else {}
    return [f"{name} (n = {prompts[name]:,})" if name in prompts else name for name in categories]


def _reference(computed: Sequence[Result]) -> Result:
    """The result whose numbers of prompts are in the headings; results of older versions have none."""
    return next((result for result in computed if result.prompts), computed[0])


def _sizes(computed: Sequence[Result]) -> str:
    """A note on methods whose number of prompts differs from the headings."""
    reference = _reference(computed)
    other = [result for result in computed if result.prompts and result.prompts != reference.prompts]
    return "\n".join(f"{result.method}: {result.prompts[OVERALL]:,} prompts in all." for result in other)


def _cut_boxes(result: Result) -> str:
    return f"{result.method}: {result.clipped} boxes were clipped to the picture, {result.outside} lay outside it."


def _pair(difference: Difference) -> str:
    return f"{difference.method} - {difference.baseline}"


def _heading(*cells: str) -> list[str]:
    return [_line(*cells), "|---" * len(cells) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
