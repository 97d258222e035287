"""The results of a method as arrays (a full SR2D run has 126,720 lines), and what its images cost.

METHOD.cost.jsonl has a line per generated batch. It is beside the results, which are the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dpt.errors import UserError, fail
from dpt.evaluation.bench.results import ImageResult, Key, read_lines
from dpt.records import from_plain
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.run import ImageRequest
    from dpt.evaluation.bench.tables import Result


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
    passed: Integers | Floats
    """1, 0, or UNJUDGED; in between for the mean over several training seeds."""
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
    """The share of its conditions (atoms) that the image meets; NaN if it is not judged or not known."""
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

    def only(self, lines: Integers) -> MethodResults:
        """Results of these lines alone."""
        kept = {
            name: getattr(self, name)[lines]
            for name in (
                *("prompt", "index", "category", "passed", "clip", "itm", "hps", "objects", "unreadable", "clipped"),
                *("outside", "counts_met", "relations_met", "claims_met"),
            )
        }
        seeds = tuple(self.noise_seeds[line] for line in lines)
        return replace(self, **kept, noise_seeds=seeds, source=None)

    def with_verdicts(self, method: str, passed: Integers | Floats) -> MethodResults:
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
        clip, itm, hps, claims_met = np.array(self.scores, float).T
        return MethodResults(
            method=method,
            prompt_ids=tuple(self.prompts),
            prompt=prompt,
            index=index,
            categories=tuple(self.categories),
            category=category,
            noise_seeds=tuple(self.noise_seeds),
            passed=passed,
            clip=clip,
            itm=itm,
            hps=hps,
            objects=objects,
            unreadable=unreadable,
            clipped=clipped,
            outside=outside,
            counts_met=counts.astype(bool),
            relations_met=relations.astype(bool),
            claims_met=claims_met,
            queried=self.queried,
            source=source,
        )


def _score(value: float | None) -> float:
    return float("nan") if value is None else value


def _all_met(atoms: Iterable[dict[str, Any]], sort: str) -> bool:
    return all(atom["met"] for atom in atoms if atom["sort"] == sort)


@dataclass(frozen=True)
class Cost:
    passes: float
    """Mean per image. With guidance a step takes two."""
    seconds: float
    """Median over batches, per image, on the machine that generated them."""
    training: int | None = None
    """Examples that the training of the checkpoint saw."""


NO_COSTS: Mapping[str, Cost] = MappingProxyType({})


def cost_file(results: Path) -> Path:
    return results.with_suffix(".cost.jsonl")


@contextmanager
def measured(file: Path | None, requests: Sequence[ImageRequest], before: Cost | None = None) -> Iterator[None]:
    """Append a line for this batch once it is generated; processes may share the file.

    `before`: the cost of images that were there already and that the method starts from.
    """
    from dpt.backbone.diffusers_model import count_passes

    start = perf_counter()
    with count_passes() as counter:
        yield
    if file is not None and requests:
        earlier = before or Cost(0.0, 0.0)
        line = {
            "first": list(requests[0].key),
            "images": len(requests),
            "passes": round(counter.passes + earlier.passes * len(requests), 3),
            "seconds": round(perf_counter() - start + earlier.seconds * len(requests), 4),
        }
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def record_training(results: Path, sample_views: int) -> None:
    """Add the training of a method's checkpoint to its cost file; the last such line counts."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with cost_file(results).open("a") as lines:
        lines.write(json.dumps({"training": sample_views}) + "\n")


def read_costs(folder: Path, methods: Iterable[str]) -> dict[str, Cost]:
    """The cost of each method that has a file. Of a batch that was generated twice, the later line counts."""
    costs = {}
    for method in methods:
        file = cost_file(folder / f"{method}.jsonl")
        if file.exists() and (cost := _read(file)) is not None:
            costs[method] = cost
    return costs


def _read(file: Path) -> Cost | None:
    batches: dict[str, tuple[int, float, float]] = {}
    training: int | None = None
    *whole, _cut = read_text(file).split("\n")  # a killed run leaves a line without its end
    for number, text in enumerate(whole, start=1):
        try:
            line = parse_json(text)
            if "training" in line:
                training = int(line["training"])
                continue
            values = int(line["images"]), float(line["passes"]), float(line["seconds"])
            if not (values[0] > 0 and min(values[1:]) >= 0):
                raise ValueError
            batches[str(line["first"])] = values
        except (ValueError, KeyError, TypeError, OverflowError):
            fail(f"{file}, line {number} is not the cost of a batch: delete the file to report without cost")
    if not batches:
        return None
    images, passes, _ = (sum(column) for column in zip(*batches.values(), strict=True))
    seconds = median(seconds / count for count, _, seconds in batches.values())
    return Cost(passes / images, seconds, training)


PLOT = "cost.png"

OVERALL = "all"

LABEL_HEIGHT, NEAR = 1.5, 1.1
"""Of a label on the plot, in points of a rate; and the ratio of passes below which labels may collide."""


LABEL_POINTS = 10
"""The height of a label in typographic points."""


def _place_label(
    passes: float, right: float, points: Sequence[tuple[float, float]], placed: list[tuple[str, float, float]]
) -> tuple[str, int]:
    """How a label is aligned to its point, and by how many labels lower it is, so that it covers no earlier one."""
    followed = any(1 < x / passes < NEAR and abs(y - right) < LABEL_HEIGHT for x, y in points)
    lower = 0
    while True:
        for side in ("right", "left") if followed else ("left", "right"):
            at = right - LABEL_HEIGHT * lower
            covers = (s == side and 1 / NEAR < passes / x < NEAR and abs(at - y) < LABEL_HEIGHT for s, x, y in placed)
            if not any(covers):
                placed.append((side, passes, at))
                return side, lower
        lower += 1


def plot(results: Sequence[Result], file: Path) -> bool:
    """Plot right images against passes, if two methods have a cost; a line joins those that no cheaper one beats."""
    known = [
        (result.cost.passes, result.rates[OVERALL], result.method)
        for result in results
        if result.cost and result.cost.passes > 0  # the axis is logarithmic
    ]
    if len(known) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    best: list[tuple[float, float]] = []
    placed: list[tuple[str, float, float]] = []
    points = [(passes, 100 * rate.value) for passes, rate, _ in known]
    for passes, rate, method in sorted(known, key=lambda point: (point[0], -point[1].value)):
        right = 100 * rate.value
        if not best or right > best[-1][1]:
            best.append((passes, right))
        if rate.low is not None and rate.high is not None:
            axis.vlines(passes, 100 * rate.low, 100 * rate.high, color="C0", linewidth=1)
        axis.plot(passes, right, "o", color="C0", markersize=4)
        side, lower = _place_label(passes, right, points, placed)
        offset = (5 if side == "left" else -5, 4 - LABEL_POINTS * lower)
        axis.annotate(method, (passes, right), xytext=offset, textcoords="offset points", fontsize=8, ha=side)
    axis.plot(*zip(*best, strict=True), color="grey", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel="passes through the network per image", ylabel="right images, %")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=8)
    axis.margins(x=0.15)
    axis.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
    return True
