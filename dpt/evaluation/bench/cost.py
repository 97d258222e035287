"""What the images of a method cost: passes through the denoising network, and seconds.

METHOD.cost.jsonl has a line per generated batch. It is beside the results, which are the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from dpt.errors import fail
from dpt.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from dpt.evaluation.bench.requests import ImageRequest
    from dpt.evaluation.bench.tables import Result


@dataclass(frozen=True)
class Cost:
    passes: float
    """Mean per image. With guidance a step takes two."""
    seconds: float
    """Median over batches, per image, on the machine that generated them."""


NO_COSTS: Mapping[str, Cost] = MappingProxyType({})


def cost_file(results: Path) -> Path:
    return results.with_suffix(".cost.jsonl")


@contextmanager
def measured(file: Path | None, requests: Sequence[ImageRequest]) -> Iterator[None]:
    """Append a line for this batch once it is generated; processes may share the file."""
    from dpt.backbone.passes import count_passes

    start = perf_counter()
    with count_passes() as counter:
        yield
    if file is not None and requests:
        line = {
            "first": list(requests[0].key),
            "images": len(requests),
            "passes": round(counter.passes, 3),
            "seconds": round(perf_counter() - start, 4),
        }
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


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
    *whole, _cut = read_text(file).split("\n")  # a killed run leaves a line without its end
    for number, text in enumerate(whole, start=1):
        try:
            line = parse_json(text)
            values = int(line["images"]), float(line["passes"]), float(line["seconds"])
            if not (values[0] > 0 and min(values[1:]) >= 0):
                raise ValueError
            batches[str(line["first"])] = values
        except (ValueError, KeyError, TypeError, OverflowError):
            fail(f"{file}, line {number} is not the cost of a batch: delete the file to report without cost")
    if not batches:
        return None
    images, passes, _ = (sum(column) for column in zip(*batches.values(), strict=True))
    return Cost(passes / images, median(seconds / count for count, _, seconds in batches.values()))


PLOT = "cost.png"

OVERALL = "all"


def plot(results: Sequence[Result], file: Path) -> bool:
    """Plot right images against passes, if two methods have a cost; a line joins those that no cheaper one beats."""
    known = [(result.cost.passes, result.rates[OVERALL], result.method) for result in results if result.cost]
    if len(known) < 2:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    best: list[tuple[float, float]] = []
    for passes, rate, method in sorted(known, key=lambda point: (point[0], -point[1].value)):
        right = 100 * rate.value
        if not best or right > best[-1][1]:
            best.append((passes, right))
        if rate.low is not None and rate.high is not None:
            axis.vlines(passes, 100 * rate.low, 100 * rate.high, color="C0", linewidth=1)
        axis.plot(passes, right, "o", color="C0", markersize=4)
        axis.annotate(method, (passes, right), xytext=(5, 4), textcoords="offset points", fontsize=8)
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
