"""How the cost of a step grows: with the batch, with the side of the latents, with the number of processes.

    python benchmarks/scale.py [--size narrow] [--rounds 3] [--gpu] [--out docs/results/performance]

Beside each: what a step takes beyond the weights at its peak, measured, and what a run says before its first step. Of
processes, each computes on one thread (or one GPU) its share of the same global batch of rendered scenes, by the real
command; the model is then the pocket.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from models import SizeName, open_size
from timing import compared, in_turns, keep, peak_bytes, table
from train_step import FORMATS, examples, stepping, task_for, ways_for  # fmt: skip
from train_step import Options as StepOptions

from dpt.cli.common.console import parse_options

ROOT = Path(__file__).resolve().parents[1]
CONVERGING = 5
"""Steps of a run that are left out: until then it warms up."""


@dataclass(frozen=True)
class Options:
    stage: Literal[1, 2] = 2
    size: SizeName = "narrow"
    batches: tuple[int, ...] = (1, 2, 4, 8)
    sides: tuple[int, ...] = (16, 32, 48)
    processes: tuple[int, ...] = (1, 2)
    global_batch: int = 8
    steps: int = 15
    rounds: int = 3
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gpu: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class Point:
    batch: int
    side: int
    ms: float
    low: float
    high: float
    peak: int
    estimate: int
    """Of activations; what is held anyway is left out of both."""


def main(options: Options) -> None:
    device = torch.device("cuda" if options.gpu else "cpu")
    own = StepOptions(stage=options.stage, size=options.size, mixed_precision=options.mixed_precision, gpu=options.gpu)
    backbone = open_size(options.size, device, FORMATS[options.mixed_precision])
    task: Any = task_for(own, backbone)
    usual = backbone.default_latent_size[0]
    sizes = [(batch, usual) for batch in options.batches]
    sizes += [(options.batches[0], side) for side in options.sides if (options.batches[0], side) not in sizes]
    works = {}
    for batch, side in sizes:
        data = examples(backbone, side * backbone.vae_scale_factor, batch).to(device)
        works[f"{batch} x {side}"] = stepping(task, ways_for(task, data)["ours"])
    took = in_turns(works, options.rounds, device)
    points = []
    for (batch, side), (name, work) in zip(sizes, works.items(), strict=True):
        backbone.network.register_to_config(sample_size=side)
        estimate = sum(bytes for part, bytes in task.memory(batch).items() if part.endswith("activations"))
        seconds = took[name]
        span = 1e3 * statistics.median(seconds), 1e3 * min(seconds), 1e3 * max(seconds)
        points.append(Point(batch, side, *span, peak_bytes(work, device), estimate))
    rows = [
        [f"{one.batch}", f"{one.side} x {one.side}", f"{one.ms:,.0f} ({one.low:,.0f}-{one.high:,.0f})",
         f"{one.ms / one.batch:,.0f}", f"{one.peak / 2**20:,.0f}", f"{one.estimate / 2**20:,.0f}",
         f"{one.estimate / one.peak:.2f}"]
        for one in points
    ]  # fmt: skip
    heads = [f"stage {options.stage}, {options.size}: batch", "latents", "ms a step (range)", "ms an example",
             "peak, MiB", "estimate, MiB", "estimate / peak"]  # fmt: skip
    tables = table(heads, rows)
    shared = processes_of(options) if options.processes else {}
    if shared:
        timed = compared(shared)
        rows = [
            [one.name, f"{one.ms:,.0f}", f"{1e3 * options.global_batch / one.ms:.3g}", one.compared] for one in timed
        ]
        heads = [f"pocket, global batch {options.global_batch}", "ms a step", "examples/s", "against the first (range)"]
        tables += f"\n\n{table(heads, rows)}"
    numbers = {"options": options, "points": [asdict(one) for one in points], "processes": shared}
    keep(options.out, "scale", tables, numbers, device)
    if options.out is not None:
        plot(options, points, shared, options.out / "scale.png")


def processes_of(options: Options) -> dict[str, list[float]]:
    """Seconds of each step of the real command after its first few, by how many processes share it."""
    found = {}
    for count in options.processes:
        with tempfile.TemporaryDirectory() as scratch:
            words = [f"train_stage{options.stage}.py", "--train_batch_size", str(options.global_batch // count),
                     "--max_train_steps", str(options.steps), "--logging_steps", "1", "--output_dir", scratch,
                     "--checkpointing_steps", "1000000", "--validation_steps", "1000000"]  # fmt: skip
            launch = ["-m", "accelerate.commands.launch", "--num_processes", str(count), "--num_machines", "1",
                      "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
            launch += [] if options.gpu else ["--cpu"]
            command = ["env", "OMP_NUM_THREADS=1", sys.executable, *launch, *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            log = next(Path(scratch).rglob("log.jsonl"))
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            clock = [line["seconds"] for line in lines if "seconds" in line][CONVERGING:]
            name = f"{count} {'process' if count == 1 else 'processes'}"
            found[name] = [after - before for before, after in pairwise(clock)]
    return found


def plot(options: Options, points: Sequence[Point], shared: dict[str, list[float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    usual = points[0].side
    for axis, along, chosen, label in (
        (left, "batch", [one for one in points if one.side == usual], f"batch, latents {usual} x {usual}"),
        (middle, "side", sorted((one for one in points if one.batch == points[0].batch), key=lambda one: one.side),
         f"side of the latents, batch {points[0].batch}"),
    ):  # fmt: skip
        x = [getattr(one, along) for one in chosen]
        ms = [one.ms for one in chosen]
        spread = [[one.ms - one.low for one in chosen], [one.high - one.ms for one in chosen]]
        axis.errorbar(x, ms, spread, marker="o", capsize=3, color="tab:blue")
        axis.set(xlabel=label, ylabel="ms a step", ylim=(0, None), xticks=x)
        memory = axis.twinx()
        memory.plot(x, [one.peak / 2**20 for one in chosen], "s--", color="tab:red", label="peak, measured")
        memory.plot(x, [one.estimate / 2**20 for one in chosen], "x:", color="tab:orange", label="peak, as estimated")
        memory.set(ylabel="MiB beyond the weights", ylim=(0, None))
        memory.legend(fontsize=8, loc="upper left")
    if shared:
        heights = [1e3 * statistics.median(seconds) for seconds in shared.values()]
        right.bar(list(shared), heights, color="tab:blue", width=0.5)
        right.set(ylabel="ms a step", xlabel=f"pocket, global batch {options.global_batch}, one thread each")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "scale.py"))
