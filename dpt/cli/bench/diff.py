"""`dpt bench diff`: what differs between two benchmarks, before their numbers are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from dpt.cli.bench.common import JUDGE_KEYS, LATER_OPTIONS, RECORD, read_record
from dpt.cli.bench.report import MANIFEST, read_method
from dpt.errors import UserError, fail
from dpt.evaluation.bench.results import LIBRARIES_KEY, OPTIONS_KEY
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.verdicts import Verdicts

SHOWN = 80
"""Characters of a value; hashes are cut to 12."""

BEFORE = 30
"""Characters before the first difference of two longer texts."""


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

    def libraries(self, method: str) -> Mapping[str, str]:
        """The libraries that drew the method; for an older record, those of its report; empty if there is none."""
        try:
            drawn_by = self.record.get(LIBRARIES_KEY, {}).get(method)
            versions = drawn_by or parse_json(read_text(self.folder / MANIFEST))["versions"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return versions if isinstance(versions, dict) else {}

    def verdicts(self, method: str) -> Verdicts:
        from dpt.evaluation.bench.verdicts import read_summary, verdicts_of

        if self.is_run:
            return verdicts_of(read_method(self.folder / f"{method}.jsonl"))
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
    yield from grouped(
        {name: [*differing("", ours[name], theirs[name], JUDGE_KEYS)] for name in in_both(first, second)}
    )


def libraries(first: Benchmark, second: Benchmark) -> Iterator[str]:
    names = in_both(first, second)
    unknown = [one.folder for one in (first, second) if not all(map(one.libraries, names))]
    yield from (f"libraries of {folder}: unknown before `dpt bench report` has run" for folder in unknown)
    if not unknown:
        yield from grouped(
            {name: [*differing("library ", first.libraries(name), second.libraries(name))] for name in names}
        )


def in_both(first: Benchmark, second: Benchmark) -> list[str]:
    return [name for name in first.record["methods"] if name in second.record["methods"]]


def grouped(found: Mapping[str, list[str]]) -> Iterator[str]:
    """The lines of each method; a line that several methods share is given once."""
    for line in {line: None for lines in found.values() for line in lines}:
        names = [name for name, lines in found.items() if line in lines]
        yield f"{'all methods' if 1 < len(names) == len(found) else ', '.join(names)}, {line}"


def differing(
    prefix: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], judge: tuple[str, ...] = ()
) -> Iterator[str]:
    for key in {**ours, **theirs}:
        one, other = ours.get(key), theirs.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differing(f"{prefix}{key}.", one, other)
            continue
        what = f"{prefix}judge's {key}" if key in judge else f"{prefix}{key}"
        texts = [as_text(value) for value in (one, other)]
        start = 0 if max(map(len, texts)) <= SHOWN else max(0, first_difference(*texts) - BEFORE)
        yield f"{what}: {' | '.join(part(text, start) for text in texts)}"


def as_text(value: Any) -> str:
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and all(digit in "0123456789abcdef" for digit in text)
    return text[:12] if is_hash else text


def first_difference(first: str, second: str) -> int:
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)


def part(text: str, start: int) -> str:
    """At most SHOWN characters of a text from `start` on."""
    end = start + SHOWN
    return f"{'...' if start else ''}{text[start:end]}{'...' if len(text) > end else ''}"


def numbers(first: Benchmark, second: Benchmark) -> Iterator[str]:
    """A line for each method of both: the rates, their paired difference and the verdicts that changed."""
    from dpt.evaluation.bench.verdicts import verdict_change

    both = in_both(first, second)
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
