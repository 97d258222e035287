"""A line for each prompt of each method: small enough to be kept with a table, and all that it is counted from.

So a method that was drawn and counted once can stand in the table of another run, without its pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dpt.errors import UserError
from dpt.evaluation.bench.results import ImageResult
from dpt.evaluation.bench.tables import Result, results
from dpt.records import from_plain
from dpt.untrusted import parse_json

NUMBERS, SUMMARY = "results.json", "summary.jsonl"


def summary(found: Mapping[str, Sequence[ImageResult]]) -> Iterator[str]:
    """Verdicts are in the order of the prompt's pictures; 1 is right, 0 wrong, null not judged."""
    for method, rows in found.items():
        for prompt, own in groupby(sorted(rows, key=lambda row: row.key), key=lambda row: row.prompt_id):
            pictures = list(own)
            told = {"method": method, "category": pictures[0].category, "prompt": prompt}
            verdicts = [None if one.passed is None else int(one.passed) for one in pictures]
            yield json.dumps({**told, "right": verdicts}) + "\n"


@dataclass(frozen=True)
class SavedSummary:
    """An earlier report."""

    record: Mapping[str, Any]
    """What was asked, and what the methods were made of."""
    results: tuple[Result, ...]
    verdicts: Mapping[str, Mapping[str, tuple[bool | None, ...]]]
    """By method and prompt."""
    fidelity: Mapping[str, Any] | None = None

    def rows(self, method: str, like: Sequence[ImageResult]) -> list[ImageResult]:
        """Its verdicts on the pictures that `like` has lines of; nothing else is known of them."""
        own = self.verdicts[method]
        if lacking := next((one for one in like if one.index >= len(own.get(one.prompt_id, ()))), None):
            raise UserError(f"the kept {method} has no verdict on picture {lacking.index} of {lacking.prompt_id}")
        return [
            ImageResult(method, one.prompt_id, one.index, one.category, one.prompt, one.unseen, one.noise_seed,
                own[one.prompt_id][one.index], (), (), 0)
            for one in like
        ]  # fmt: skip

    def check(self, method: str, rows: Sequence[ImageResult]) -> None:
        """The verdicts must be those that its numbers were counted from."""
        (told,) = (one for one in self.results if one.method == method)
        (counted,) = results({method: rows})
        one, other = ({name: round(rate.value, 9) for name, rate in of.rates.items()} for of in (told, counted))
        if one != other or told.pictures != len(rows):
            raise UserError(f"{NUMBERS} and {SUMMARY} tell different things of {method}: they are of two reports")


def read_summary(folder: Path) -> SavedSummary:
    try:
        record = parse_json((folder / NUMBERS).read_text())
        lines = [parse_json(line) for line in (folder / SUMMARY).read_text().splitlines()]
        told = tuple(from_plain(Result, one, f"{folder / NUMBERS}") for one in record["results"])
        verdicts: dict[str, dict[str, tuple[bool | None, ...]]] = {}
        for line in lines:
            right = tuple(None if one is None else bool(one) for one in line["right"])
            verdicts.setdefault(line["method"], {})[line["prompt"]] = right
        names = [one.method for one in told]
        if missing := [name for name in names if name not in verdicts]:
            raise UserError(f"{folder / SUMMARY} has no line of {missing[0]}, which {NUMBERS} has")
        if sorted(names) != sorted(record["methods"]):
            raise UserError(f"{folder / NUMBERS} does not have one result of each of its methods")
        return SavedSummary(
            {"asked": record["asked"], "methods": record["methods"]}, told, verdicts, record.get("fidelity")
        )
    except OSError as error:
        raise UserError(f"{folder} holds no report: cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        what = f"{NUMBERS} or {SUMMARY} is not what `dpt bench report` writes"
        raise UserError(f"{folder} holds no report: {what}") from None
