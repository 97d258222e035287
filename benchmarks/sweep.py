"""How to correct: ways of self-correction by what they draw right, what they cost and how far from scenes they lead.

    python benchmarks/sweep.py [--ckpt ckpt/pocket-stage1] [--prompts 60] [--out outputs/sweep]

Every way draws the same prompts of the pocket suite from the same noise. Stop and repeat at will: pictures that are
there are not drawn again. Leaves sweep.json, table.md and sweep.png in OUT, and the benchmark beside them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models import FULL
from sampling import products

from dpt.cli.bench import report as bench_report
from dpt.cli.bench import run as bench
from dpt.cli.common.console import parse_options, versions
from dpt.embedded import CHECKOUT
from dpt.methods.base import GenerationConfig
from dpt.methods.registry import parse_method
from dpt.sampling.draw import Request, draw
from dpt.sampling.options import ALWAYS, Correction

PLAIN = "uncorrected"
TO_60 = "end=0.6"
WAYS = {
    "state-10": "factor=0.1,target=state,norm=rms",
    "state-5-early": f"factor=0.05,target=state,norm=rms,{TO_60}",
    "state-10-early": f"factor=0.1,target=state,norm=rms,{TO_60}",
    "state-15-early": f"factor=0.15,target=state,norm=rms,{TO_60}",
    "state-12-plain": f"factor=12,target=state,{TO_60}",
    "input-10-early": f"factor=0.1,target=input,norm=rms,{TO_60}",
    "fused-10": "factor=0.1,target=fused,norm=rms",
    "fused-10-early": f"factor=0.1,target=fused,norm=rms,{TO_60}",
    "fused-15-early": f"factor=0.15,target=fused,norm=rms,{TO_60}",
}
"""As `dpt bench run` takes them after a method's path."""
TIMED = "a red circle to the left of a blue square"
ROUNDS, PICTURES = 3, 4


@dataclass(frozen=True)
class Options:
    ckpt: Path = CHECKOUT / "ckpt/pocket-stage1"
    """Its adapter corrects, in the model with its LoRA if it has one."""
    out: Path = Path("outputs/sweep")
    prompts: int = 60
    """Of each category."""
    per_prompt: int = 1
    seed: int = 1
    """Of the prompts: other ones than those that the chosen way is judged by."""
    only: tuple[str, ...] = ()
    """Draw these ways and stop, so that several processes can share the work."""
    mixed_precision: Literal["no", "bf16"] | None = None


def main(options: Options) -> None:
    words = {PLAIN: "", **WAYS}
    lora = (options.ckpt / "lora").is_dir()
    texts = {
        name: "base" if name == PLAIN and not lora else f"{name}={options.ckpt}{',' if how else ''}{how}"
        for name, how in words.items()
    }
    run = bench.with_defaults(
        bench.RunOptions(
            tuple(texts[name] for name in options.only or words),
            out=options.out,
            suite=bench.SuiteOptions(prompts=options.prompts, per_prompt=options.per_prompt, seed=options.seed),
            generation=GenerationConfig(mixed_precision=options.mixed_precision),
        )
    )
    bench.run(run)
    if options.only:
        return
    baseline = PLAIN if lora else bench.BASE
    bench_report.report(bench_report.ReportOptions(options.out, baseline=baseline, reference="scenes"))
    results = json.loads((options.out / "results.json").read_text())
    ways = {baseline: Correction()} | {name: parse_method(texts[name]).correction for name in WAYS}
    record = {
        "asked": {"prompts": options.prompts, "per_prompt": options.per_prompt, "seed": options.seed},
        "versions": versions(),
        "methods": results["methods"],
        "floor": results["fidelity"]["floor"],
        "ways": found(results, ways, baseline, seconds(ways, run, options.ckpt)),
    }
    (options.out / "sweep.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record["ways"], record["floor"])
    (options.out / "table.md").write_text(text)
    plot(record["ways"], record["floor"], options.out / "sweep.png")
    print(text)


def seconds(ways: Mapping[str, Correction], run: bench.RunOptions, ckpt: Path) -> dict[str, list[float]]:
    """A picture's drawing as a multiple of the plain one's, in rounds; the ways take turns."""
    method = replace(parse_method(f"timed={ckpt},factor=1"))
    opened = method.open(run.generation)
    settings = replace(opened.settings, correction=Correction())
    requests = [Request(TIMED, 0, index) for index in range(PICTURES)]
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, correction in ways.items():
            begun = time.perf_counter()
            how = replace(settings, correction=correction)
            list(draw(opened.backbone, requests, how, adapter=opened.adapter, batch_size=PICTURES, exact=False))
            if turn:  # the first is for warming up
                took[name].append(time.perf_counter() - begun)
    plain = next(iter(took.values()))
    return {name: [mine / base for mine, base in zip(own, plain, strict=True)] for name, own in took.items()}


def found(
    results: Mapping[str, Any], ways: Mapping[str, Correction], baseline: str, took: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    rates = {one["method"]: one["rates"] for one in results["results"]}
    apart = {one["method"]: one["points"] for one in results["differences"] if one["baseline"] == baseline}
    full = products(FULL, {name: replace(one, interval=ALWAYS, every=1) for name, one in ways.items()})
    return [
        {
            "way": name,
            "correction": asdict(how),
            "rates": rates[name],
            "difference": apart.get(name),
            "distance": results["fidelity"]["distances"][name],
            "seconds": {"median": statistics.median(took[name]), "range": [min(took[name]), max(took[name])]},
            "products": 1 + share(how) * (full[name] / full[baseline] - 1),
        }
        for name, how in ways.items()
    ]


def share(how: Correction) -> float:
    """Of the steps, those that are corrected."""
    return (how.interval.end - how.interval.start) / how.every if how.on else 0.0


def table(ways: list[dict[str, Any]], floor: float) -> str:
    lines = [
        "| way | target | norm | factor | steps | right, % | against plain | Fréchet | seconds | products, SD 2.1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in ways:
        how, seconds, apart = one["correction"], one["seconds"], one["difference"]
        settings = ["", "", "", ""] if apart is None else [how["target"], how["norm"], f"{how['factor']:g}", steps(how)]
        cells = [
            one["way"],
            *settings,
            percent(one["rates"]["all"]),
            "" if apart is None else percent(apart["all"], sign="+"),
            f"{one['distance']:.3f}",
            f"{seconds['median']:.2f} ({seconds['range'][0]:.2f}-{seconds['range'][1]:.2f})",
            f"{one['products']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\nTwo sets of scenes of that size are {floor:.3f} apart.\n"


def percent(estimate: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def steps(how: Mapping[str, Any]) -> str:
    start, end = how["interval"]["start"], how["interval"]["end"]
    when = "all" if (start, end) == (0, 1) else f"{start:g} to {end:g}"
    return when if how["every"] == 1 else f"{when}, every {how['every']}"


def plot(ways: list[dict[str, Any]], floor: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained", sharey=True)
    colours = {None: "black", "state": "C0", "input": "C2", "fused": "C1"}
    for axis, x, label in (
        (axes[0], lambda one: one["seconds"]["median"], "seconds a picture, as a multiple of plain sampling"),
        (axes[1], lambda one: one["distance"], "Fréchet distance to rendered scenes (less is nearer)"),
    ):
        for one in ways:
            rate = one["rates"]["all"]
            value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
            target = None if one["difference"] is None else one["correction"]["target"]
            error = [[value - low], [high - value]]
            axis.errorbar(x(one), value, error, fmt="o", color=colours[target], elinewidth=0.6, capsize=2)
            axis.annotate(one["way"], (x(one), value), xytext=(5, 3), textcoords="offset points", fontsize=7)
        axis.set(xlabel=label)
        axis.margins(x=0.15)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="pictures that are right, %, mean of the categories")
    axes[1].set(title=f"two sets of scenes of that size are {floor:.1f} apart", ylim=axes[0].get_ylim())
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "sweep.py"))
