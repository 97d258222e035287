"""The summary of a report: the verdicts per method and prompt, small enough to be committed.

All rates follow from it, so a later report can include an earlier method without its pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpt.errors import UserError
from dpt.evaluation.bench.columns import UNJUDGED, MethodResults
from dpt.evaluation.bench.results import OPTIONS_KEY
from dpt.evaluation.bench.tables import Result, compute_results
from dpt.records import from_plain
from dpt.untrusted import parse_json, read_text

NUMBERS, SUMMARY = "results.json", "summary.jsonl"


def summary(methods: Mapping[str, MethodResults]) -> Iterator[str]:
    """Return JSON lines; verdicts are in the order of the prompt's pictures: 1 right, 0 wrong, null not judged."""
    for method, results in methods.items():
        lines = results.by_key
        for pictures in np.split(lines, np.flatnonzero(np.diff(results.prompt[lines])) + 1):
            first = int(pictures[0])
            verdicts = [None if passed == UNJUDGED else passed for passed in results.passed[pictures].tolist()]
            category = results.categories[results.category[first]]
            prompt = results.prompt_ids[results.prompt[first]]
            yield json.dumps({"method": method, "category": category, "prompt": prompt, "right": verdicts}) + "\n"


@dataclass(frozen=True)
class SavedSummary:
    """An earlier report."""

    record: Mapping[str, Any]
    """The options of the run, and the identity of each method."""
    results: tuple[Result, ...]
    verdicts: Mapping[str, Mapping[str, tuple[bool | None, ...]]]
    """By method and prompt."""
    fidelity: Mapping[str, Any] | None = None

    def method_results(self, method: str, like: MethodResults) -> MethodResults:
        """Return the method's verdicts on the pictures of `like`."""
        verdicts_by_prompt = self.verdicts[method]
        passed = np.empty(len(like), np.int64)
        for line in range(len(like)):
            prompt, index = like.key(line)
            verdicts = verdicts_by_prompt.get(prompt, ())
            if index >= len(verdicts):
                raise UserError(f"the earlier report has no verdict of {method} on picture {index} of {prompt}")
            verdict = verdicts[index]
            passed[line] = UNJUDGED if verdict is None else verdict
        return like.with_verdicts(method, passed)

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
        verdicts: dict[str, dict[str, tuple[bool | None, ...]]] = {}
        for text in read_text(folder / SUMMARY).splitlines():
            line = parse_json(text)
            right = tuple(None if verdict is None else bool(verdict) for verdict in line["right"])
            verdicts.setdefault(line["method"], {})[line["prompt"]] = right
        names = [result.method for result in saved]
        if missing := [name for name in names if name not in verdicts]:
            raise UserError(f"{folder / SUMMARY} has no line for the method {missing[0]} of {NUMBERS}")
        if sorted(names) != sorted(record["methods"]):
            raise UserError(f"{folder / NUMBERS} does not have one result for each of its methods")
        options_and_methods = {OPTIONS_KEY: record[OPTIONS_KEY], "methods": record["methods"]}
        return SavedSummary(options_and_methods, saved, verdicts, record.get("fidelity"))
    except OSError as error:
        raise UserError(f"{folder} holds no report: cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        what = f"{NUMBERS} or {SUMMARY} was not written by `dpt bench report`"
        raise UserError(f"{folder} holds no report: {what}") from None
