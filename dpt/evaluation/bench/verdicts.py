"""The verdicts of a report, a line of JSON per prompt, and how far a second judge agrees with the first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpt.errors import UserError
from dpt.evaluation.bench.columns import UNJUDGED, Booleans, Floats, MethodResults
from dpt.evaluation.bench.results import LIBRARIES_KEY, OPTIONS_KEY, check_libraries
from dpt.evaluation.bench.tables import (
    Difference,
    Result,
    compute_results,
    difference_table,
    paired_difference,
    rate_table,
)
from dpt.intervals import DIFFERENCE, PROPORTION, Estimate, bootstrap
from dpt.records import from_plain
from dpt.untrusted import parse_json, read_text


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
        raise UserError(f"the two judges did not judge the same images of {first.method}: run `dpt bench score` again")
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


NUMBERS, SUMMARY = "results.json", "summary.jsonl"


class PromptVerdicts(NamedTuple):
    category: str
    right: Mapping[int, bool | None]
    """By the image's number; None if not judged."""


Verdicts = Mapping[str, PromptVerdicts]
"""By prompt."""


def verdicts_of(results: MethodResults) -> dict[str, PromptVerdicts]:
    lines = results.by_key
    verdicts = {}
    for images in np.split(lines, np.flatnonzero(np.diff(results.prompt[lines])) + 1):
        first = int(images[0])
        of_prompt = zip(results.index[images].tolist(), results.passed[images].tolist(), strict=True)
        verdicts[results.prompt_ids[results.prompt[first]]] = PromptVerdicts(
            results.categories[results.category[first]],
            {index: None if passed == UNJUDGED else bool(passed) for index, passed in of_prompt},
        )
    return verdicts


def summary(methods: Mapping[str, MethodResults]) -> Iterator[str]:
    """Return JSON lines; verdicts are in the order of the prompt's images: 1 right, 0 wrong, null not judged.

    A line has the images' numbers too, if some are absent.
    """
    for method, results in methods.items():
        for prompt, (category, verdicts) in verdicts_of(results).items():
            right = [None if verdict is None else int(verdict) for verdict in verdicts.values()]
            numbers = {} if list(verdicts) == list(range(len(right))) else {"images": list(verdicts)}
            line = {"method": method, "category": category, "prompt": prompt, "right": right, **numbers}
            yield f"{json.dumps(line)}\n"


def _prompt_verdicts(line: Mapping[str, Any]) -> PromptVerdicts:
    right = [None if verdict is None else bool(verdict) for verdict in line["right"]]
    numbers = line.get("images", range(len(right)))
    if not right or not all(isinstance(number, int) for number in numbers):
        raise ValueError
    return PromptVerdicts(str(line["category"]), dict(zip(numbers, right, strict=True)))


@dataclass(frozen=True)
class VerdictChange:
    """Two verdicts on the same images of the same prompts, of two runs."""

    images: int
    is_part: bool
    """Whether one of the runs has further images."""
    first: float
    """Share of right images: the mean over categories, as in a report."""
    second: float
    difference: Estimate
    became_right: int
    became_wrong: int

    def __str__(self) -> str:
        which = f"the {self.images:,} images that both have" if self.is_part else f"{self.images:,} images"
        return (
            f"{100 * self.first:.1f} % | {100 * self.second:.1f} % right, difference {self.difference.signed}, over "
            f"{which}; {self.became_right} became right, {self.became_wrong} wrong"
        )


def verdict_change(first: Verdicts, second: Verdicts) -> VerdictChange:
    """Compare the images that both have: a method may have more images of each prompt in one of the runs."""
    means: dict[str, list[Floats]] = {}
    pairs: list[tuple[bool | None, bool | None]] = []
    for prompt in sorted(first.keys() & second.keys()):
        ours, theirs = first[prompt].right, second[prompt].right
        of_prompt = [(ours[number], theirs[number]) for number in ours if number in theirs]
        if any(None in pair for pair in of_prompt):
            raise UserError("not all images are judged in both")
        if of_prompt:
            means.setdefault(first[prompt].category, []).append(np.array(of_prompt, float).mean(0))
        pairs += of_prompt
    if not pairs:
        raise UserError("no image is in both")
    by_category = [np.array(of_category) for of_category in means.values()]
    most = max(sum(len(of_prompt.right) for of_prompt in verdicts.values()) for verdicts in (first, second))
    rates = np.mean([of_category.mean(0) for of_category in by_category], axis=0)
    return VerdictChange(
        images=len(pairs),
        is_part=len(pairs) < most,
        first=float(rates[0]),
        second=float(rates[1]),
        difference=bootstrap([of_category[:, 1] - of_category[:, 0] for of_category in by_category], DIFFERENCE),
        became_right=pairs.count((False, True)),
        became_wrong=pairs.count((True, False)),
    )


@dataclass(frozen=True)
class SavedSummary:
    """An earlier report."""

    record: Mapping[str, Any]
    """The options of the run, the identity of each method, and the libraries that drew it."""
    results: tuple[Result, ...]
    verdicts: Mapping[str, Verdicts]
    """By method."""
    fidelity: Mapping[str, Any] | None = None

    def method_results(self, method: str, like: MethodResults) -> MethodResults:
        """Return the method's verdicts. `like` must have every image of it."""
        known = {
            (prompt, number): UNJUDGED if verdict is None else int(verdict)
            for prompt, verdicts in self.verdicts[method].items()
            for number, verdict in verdicts.right.items()
        }
        if absent := known.keys() - like.line_of.keys():
            prompt, number = min(absent)
            raise UserError(
                f"the earlier report has image {number} of {prompt} by {method}, which {like.method} does not have: "
                "run this benchmark with a higher --per_prompt"
            )
        if missing := set(like.prompt_ids) - {prompt for prompt, _ in known}:
            raise UserError(f"the earlier report has no verdict of {method} on any image of {min(missing)}")
        lines = np.array([line for line in range(len(like)) if like.key(line) in known], np.int64)
        passed = np.array([known[like.key(int(line))] for line in lines], np.int64)
        return like.only(lines).with_verdicts(method, passed)

    def check(self, method: str, results: MethodResults) -> None:
        """Raise if the verdicts do not give the saved rates."""
        (saved,) = (result for result in self.results if result.method == method)
        (computed,) = compute_results({method: results})
        rates = [{name: round(rate.value, 9) for name, rate in result.rates.items()} for result in (saved, computed)]
        if rates[0] != rates[1] or saved.pictures != len(results):
            raise UserError(f"{NUMBERS} and {SUMMARY} disagree on {method}: they belong to different reports")


def read_summary(folder: Path) -> SavedSummary:
    try:
        record = parse_json(read_text(folder / NUMBERS))
        saved = tuple(from_plain(Result, result, f"{folder / NUMBERS}") for result in record["results"])
        verdicts: dict[str, dict[str, PromptVerdicts]] = {}
        for text in read_text(folder / SUMMARY).splitlines():
            line = parse_json(text)
            verdicts.setdefault(line["method"], {})[line["prompt"]] = _prompt_verdicts(line)
        names = [result.method for result in saved]
        if missing := [name for name in names if name not in verdicts]:
            raise UserError(f"{folder / SUMMARY} has no line for the method {missing[0]} of {NUMBERS}")
        methods = record["methods"]
        if not all(isinstance(value, dict) for value in (record[OPTIONS_KEY], methods, *methods.values())):
            raise TypeError
        check_libraries(record)
        if sorted(names) != sorted(methods):
            raise UserError(f"{folder / NUMBERS} does not have one result for each of its methods")
        run = {key: record[key] for key in (OPTIONS_KEY, "methods", LIBRARIES_KEY) if key in record}
        return SavedSummary(run, saved, verdicts, record.get("fidelity"))
    except OSError as error:
        raise UserError(
            f"{folder} holds neither a benchmark of `dpt bench run` nor a report of it: cannot read {error.filename}: "
            f"{error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        what = f"{NUMBERS} or {SUMMARY} was not written by `dpt bench report`"
        raise UserError(f"{folder} holds no report: {what}") from None
