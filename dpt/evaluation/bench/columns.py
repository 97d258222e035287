"""The results of a method as arrays: a full SR2D run has 126,720 lines, too many to hold as objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpt.errors import UserError
from dpt.evaluation.bench.results import ImageResult, Key, read_lines
from dpt.records import from_plain
from dpt.untrusted import parse_json

Integers = npt.NDArray[np.int64]

Floats = npt.NDArray[np.float64]

Booleans = npt.NDArray[np.bool_]

UNJUDGED = -1


@dataclass(frozen=True, eq=False)
class Offsets:
    """Byte offsets of the lines of a results file."""

    file: Path
    offsets: Integers


@dataclass(frozen=True, eq=False)
class MethodResults:
    """An entry per line, in the file's order. Prompts and categories are numbered by first appearance."""

    method: str
    prompt_ids: tuple[str, ...]
    prompt: Integers
    index: Integers
    categories: tuple[str, ...]
    category: Integers
    noise_seeds: tuple[int, ...]
    passed: Integers
    """1, 0, or UNJUDGED."""
    clip: Floats
    """NaN where there is no score."""
    itm: Floats
    hps: Floats
    objects: Integers
    unreadable: Integers
    clipped: Integers
    outside: Integers
    counts_met: Booleans
    """Whether every `count` atom is met."""
    relations_met: Booleans
    claims_met: Floats
    """The share of the prompt's claims (atoms) that the image meets; NaN if it is not judged or not known."""
    queried: bool
    """Whether the detector takes queries."""
    source: tuple[ImageResult, ...] | Offsets | None
    """The lines, or their offsets in the file; None if only verdicts are known."""

    def __len__(self) -> int:
        return len(self.prompt)

    @classmethod
    def read(cls, file: Path, on_repeated: Callable[[int], None] | None = None) -> MethodResults:
        columns = _Columns()
        offsets: list[int] = []
        for line in read_lines(file, on_repeated):
            columns.add(line.fields)
            offsets.append(line.offset)
        return columns.build(file.stem, Offsets(file, np.array(offsets, np.int64)))

    @classmethod
    def of(cls, results: Sequence[ImageResult]) -> MethodResults:
        columns = _Columns()
        for result in results:
            columns.add(asdict(result))
        return columns.build(results[0].method if results else "", tuple(results))

    def result(self, line: int) -> ImageResult:
        """Return the complete result of a line."""
        if self.source is None:
            raise ValueError(f"only verdicts are known of {self.method}")
        if isinstance(self.source, Offsets):
            with self.source.file.open("rb") as stream:
                stream.seek(int(self.source.offsets[line]))
                return from_plain(ImageResult, parse_json(stream.readline().decode()), str(self.source.file))
        return self.source[line]

    def key(self, line: int) -> Key:
        return self.prompt_ids[self.prompt[line]], int(self.index[line])

    @cached_property
    def line_of(self) -> dict[Key, int]:
        return {self.key(line): line for line in range(len(self))}

    @cached_property
    def by_key(self) -> Integers:
        """The lines sorted by prompt id and index."""
        rank = np.argsort(np.argsort(np.array(self.prompt_ids, dtype=object))) if self.prompt_ids else np.array([], int)
        return np.lexsort((self.index, rank[self.prompt]))

    def prompt_means(self, values: npt.ArrayLike) -> dict[str, Floats]:
        """Return the mean over each prompt's images, by category; prompts are sorted by id."""
        values = np.asarray(values, dtype=float)[self.by_key]
        prompt, category = self.prompt[self.by_key], self.category[self.by_key]
        means = {}
        for number, name in enumerate(self.categories):
            mask = category == number
            _, first, inverse = np.unique(prompt[mask], return_index=True, return_inverse=True)
            by_prompt = np.bincount(inverse, values[mask]) / np.bincount(inverse)
            means[name] = by_prompt[np.argsort(first)]
        return means

    def with_verdicts(self, method: str, passed: Integers) -> MethodResults:
        """Results of another method for the same images, of which only the verdicts are known."""
        no_scores, zeros = np.full(len(self), np.nan), np.zeros(len(self), np.int64)
        return replace(
            self, method=method, passed=passed, claims_met=no_scores, clip=no_scores, itm=no_scores, hps=no_scores,
            objects=zeros, unreadable=zeros, clipped=zeros, outside=zeros, queried=False, source=None,
        )  # fmt: skip


class _Columns:
    """Builder of `MethodResults`."""

    def __init__(self) -> None:
        self.prompts: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        self.noise_seeds: list[int] = []
        self.rows: list[tuple[int, ...]] = []
        self.scores: list[tuple[float, ...]] = []
        self.queried = False

    def add(self, fields: dict[str, Any]) -> None:
        prompt = self.prompts.setdefault(fields["prompt_id"], len(self.prompts))
        category = self.categories.setdefault(fields["category"], len(self.categories))
        atoms = fields["atoms"]
        passed = UNJUDGED if fields["passed"] is None else int(fields["passed"])
        self.queried |= bool(atoms) and atoms[0]["sort"] != "readable"
        self.noise_seeds.append(fields["noise_seed"])
        met = sum(atom["met"] for atom in atoms) / len(atoms) if atoms else None
        self.scores.append((*(_score(fields.get(name)) for name in ("clip", "itm", "hps")), _score(met)))
        self.rows.append((
            prompt, fields["index"], category, passed, len(fields["objects"]), fields["unreadable"],
            fields.get("clipped", 0), fields.get("outside", 0), _all_met(atoms, "count"), _all_met(atoms, "relation"),
        ))  # fmt: skip

    def build(self, method: str, source: tuple[ImageResult, ...] | Offsets) -> MethodResults:
        if not self.rows:
            raise UserError(f"the method {method} has no results yet: run it first" if method else "no results")
        prompt, index, category, passed, objects, unreadable, clipped, outside, counts, relations = np.array(
            self.rows, np.int64
        ).T
        clip, itm, hps, met = np.array(self.scores, float).T
        return MethodResults(
            method, tuple(self.prompts), prompt, index, tuple(self.categories), category, tuple(self.noise_seeds),
            passed, clip, itm, hps, objects, unreadable, clipped, outside, counts.astype(bool), relations.astype(bool),
            met, self.queried, source,
        )  # fmt: skip


def _score(value: float | None) -> float:
    return float("nan") if value is None else value


def _all_met(atoms: Iterable[dict[str, Any]], sort: str) -> bool:
    return all(atom["met"] for atom in atoms if atom["sort"] == sort)
