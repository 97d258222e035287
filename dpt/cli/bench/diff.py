"""`dpt bench diff`: what differs between two benchmarks, before their numbers are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dpt.cli.bench.common import JUDGE_KEYS, LATER_OPTIONS, RECORD, read_record
from dpt.cli.bench.report import MANIFEST, read_results
from dpt.errors import UserError, fail
from dpt.evaluation.bench.results import OPTIONS_KEY
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.verdicts import Verdicts

SHOWN = 80
"""Characters of a value; hashes are cut to 12."""


@dataclass(frozen=True)
class DiffOptions:
    """Print every setting, model, judge and library that differs between two benchmarks, then compare their numbers.

    Numbers are compared, in pairs of images, for methods of the same name whose prompts are the same.
    """

    first: tyro.conf.Positional[Path]
    """A folder of `dpt bench run` or of `dpt bench report`."""
    second: tyro.conf.Positional[Path]
    """The other folder."""


@dataclass(frozen=True)
class Benchmark:
    """A run, or a report whose run may be gone."""

    folder: Path
    record: Mapping[str, Any]
    is_run: bool

    @classmethod
    def open(cls, folder: Path) -> Benchmark:
        if (folder / RECORD).is_file():
            return cls(folder, read_record(folder), True)
        from dpt.evaluation.bench.verdicts import read_summary

        saved = read_summary(folder)
        options = {**LATER_OPTIONS, **saved.record[OPTIONS_KEY]}
        return cls(folder, {**saved.record, OPTIONS_KEY: options}, False)

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Libraries, as the report recorded them; empty before the first report."""
        try:
            versions = parse_json(read_text(self.folder / MANIFEST))["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return versions if isinstance(versions, dict) else {}

    def verdicts(self, method: str) -> Verdicts:
        from dpt.evaluation.bench.verdicts import read_summary, verdicts_of

        if self.is_run:
            return verdicts_of(read_results(self.folder / f"{method}.jsonl"))
        return dict(read_summary(self.folder).verdicts[method])


def diff(options: DiffOptions) -> None:
    if options.first.resolve() == options.second.resolve():
        fail(f"{options.first} and {options.second} are the same folder")
    first, second = Benchmark.open(options.first), Benchmark.open(options.second)
    lines = [line for part in (settings, methods, libraries) for line in part(first, second)]
    for line in lines or ["no setting, model, judge or library differs"]:
        print(line)
    print()
    for line in numbers(first, second):
        print(line)


def settings(first: Benchmark, second: Benchmark) -> Iterator[str]:
    yield from differing("--", first.record[OPTIONS_KEY], second.record[OPTIONS_KEY])


def methods(first: Benchmark, second: Benchmark) -> Iterator[str]:
    ours, theirs = first.record["methods"], second.record["methods"]
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs:
            yield f"{name}: only in {(first if name in ours else second).folder}"
            continue
        yield from differing(f"{name}, ", ours[name], theirs[name], judge=JUDGE_KEYS)


def libraries(first: Benchmark, second: Benchmark) -> Iterator[str]:
    for benchmark in (first, second):
        if not benchmark.versions:
            yield f"libraries of {benchmark.folder}: unknown before `dpt bench report` has run"
    if first.versions and second.versions:
        yield from differing("library ", first.versions, second.versions)


def differing(
    prefix: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], judge: tuple[str, ...] = ()
) -> Iterator[str]:
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            what = f"{prefix}judge's {key}" if key in judge else f"{prefix}{key}"
            yield f"{what}: {short(ours.get(key))} | {short(theirs.get(key))}"


def short(value: Any) -> str:
    text = "none" if value is None else str(value)
    if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text):
        return text[:12]
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def numbers(first: Benchmark, second: Benchmark) -> Iterator[str]:
    """A line for each method of both: the rates, their paired difference and the verdicts that changed."""
    from dpt.evaluation.bench.verdicts import verdict_change

    both = [name for name in first.record["methods"] if name in second.record["methods"]]
    if not both:
        yield "no method is in both"
    hashes = [
        {identity.get("suite_hash") for identity in one.record["methods"].values()} - {None} for one in (first, second)
    ]
    if all(hashes) and hashes[0] != hashes[1]:
        yield "the prompts or the rules of the suite differ: numbers are not compared"
        return
    for name in both:
        try:
            change = verdict_change(first.verdicts(name), second.verdicts(name))
        except UserError as error:
            yield f"{name}: not compared: {error}"
            continue
        yield f"{name}: {change}"
