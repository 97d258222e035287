"""One GPU and twelve minutes: the tests that need one, and what training and sampling cost at true size.

    benchmarks/gpu.sh [--out FOLDER] [--skip PART ...] [--minutes 12] [--tiny]

Weights are random where there are none. Each measurement becomes OUT/NAME.json as soon as it is done, and summary.json
lists all of them. One that fails (out of memory, say) or that no time is left for is recorded, and the next begins.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import sampling
import torch
import train_step
from flops import dense_rate
from models import SIZES, SMALL_ADAPTER, SizeName, adapter_for, open_size
from timing import command, compared, in_turns, machine, peak_bytes, table

from dpt.cli.common.console import parse_options
from dpt.cli.train.stages import main_stage1
from dpt.embedded import EMBEDDED

ROOT = Path(__file__).resolve().parents[1]

Part = Literal["tests", "sd21", "sdxl", "pocket"]

GPU_TESTS = ("tests/gpu", "tests/training/test_precision.py")

POCKET = "ckpt/pocket-mmdit"


@dataclass(frozen=True)
class Options:
    out: Path = Path("runs/gpu")
    """Where the results go."""
    skip: tuple[Part, ...] = ()
    """Parts to leave out: tests, sd21 and sdxl (training steps and corrected sampling at true size), pocket (training
    on the transformer pocket)."""
    minutes: float = 12.0
    """No measurement begins after this."""
    rounds: int = 3
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    tiny: bool = False
    """Shrunk models on the CPU: shows that the script works."""


@dataclass(frozen=True)
class Measurement:
    part: Part
    name: str
    run: Callable[[], dict[str, Any]]


def main(options: Options) -> int:
    if not options.tiny and not torch.cuda.is_available():
        print("error: PyTorch finds no GPU on this machine; --tiny runs everything on the CPU", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    summary = []
    for measurement in measurements(options):
        entry = run(measurement, options, time.monotonic() - begin)
        summary.append(entry)
        write(options.out / f"{measurement.name}.json", entry)
        print(f"{measurement.name}: {entry['status']}, {entry.get('seconds', 0):.1f} s", flush=True)
    device = torch.device("cpu" if options.tiny else "cuda")
    date = datetime.now(UTC).date().isoformat()
    write(
        options.out / "summary.json",
        {"command": command(), "date": date, "machine": machine(device), "results": summary},
    )
    rows = [[entry["name"], entry["status"], highlights(entry)] for entry in summary]
    print(table(["measurement", "status", "result"], rows))
    return int(any(entry["status"] == "failed" for entry in summary))


def run(measurement: Measurement, options: Options, elapsed: float) -> dict[str, Any]:
    entry: dict[str, Any] = {"part": measurement.part, "name": measurement.name}
    if measurement.part in options.skip:
        return {**entry, "status": "skipped", "reason": "--skip"}
    if elapsed > 60 * options.minutes:
        return {**entry, "status": "skipped", "reason": f"{options.minutes:g} minutes are over"}
    started = time.monotonic()
    try:
        result = {"status": "done", "result": measurement.run()}
    except Exception as error:  # whatever went wrong, the other measurements are still worth their time
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {**entry, **result, "seconds": time.monotonic() - started}


def measurements(options: Options) -> Iterator[Measurement]:
    yield Measurement("tests", "tests", run_tests)
    sizes: dict[Part, tuple[SizeName, SizeName]] = {"sd21": ("full", "tiny"), "sdxl": ("xl", "tiny-xl")}
    for part, (true, shrunk) in sizes.items():
        size = shrunk if options.tiny else true
        for stage, checkpointing in ((1, False), (2, False), (2, True)):
            name = f"{part}-stage{stage}{'-checkpointing' * checkpointing}"
            yield Measurement(part, name, lambda s=size, n=stage, c=checkpointing: training(options, s, n, c))  # type: ignore[misc]
        yield Measurement(part, f"{part}-correction", lambda s=size: correction(options, s))  # type: ignore[misc]
    yield Measurement("pocket", "pocket", lambda: pocket(options))


def run_tests() -> dict[str, Any]:
    """The tests marked `gpu`; without a GPU they are skipped."""
    words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *GPU_TESTS]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if done.returncode not in (0, 5) or not counts:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-500:])
    return counts


WAYS = ("published", "ours", "ours, cached")
"""Of a training step, beside the first one: plain in stage 2, bare in stage 1."""


def training(options: Options, size: SizeName, stage: Literal[1, 2], checkpointing: bool) -> dict[str, Any]:
    """A step of this stage against the least that it could be and against the published schedule, and its memory."""
    device = torch.device("cpu" if options.tiny else "cuda")
    own = train_step.Options(
        stage=stage,
        size=size,
        adapter_precision="fp32" if options.tiny else "bf16",
        gradient_checkpointing=checkpointing,
    )
    backbone = open_size(size, device, None if options.tiny else train_step.FORMATS[options.mixed_precision])
    task = train_step.task_for(own, backbone, SMALL_ADAPTER if options.tiny else {})
    batch = train_step.examples(backbone, backbone.default_image_size[0], 1).to(device)
    ways = train_step.ways_for(task, batch)
    first = next(iter(ways))
    steps = {name: train_step.stepping(task, ways[name], name in train_step.AS_IT_CAME) for name in (first, *WAYS)}
    times = {timed.name: timed.ms for timed in compared(in_turns(steps, rounds(options), device, warm(options)))}
    ours = steps["ours"]
    flop = train_step.operations(ours, device)
    rate = flop / times["ours"] * 1e3
    makers = dense_rate(device)
    return {
        "milliseconds": times,
        f"ours against {first}": times["ours"] / times[first],
        f"ours, cached, against {first}": times["ours, cached"] / times[first],
        "published against ours": times["published"] / times["ours"],
        "TFLOP a step": flop / 1e12,
        "TFLOP/s": rate / 1e12,
        "MFU": None if makers is None else rate / makers,
        "bytes kept for the backward pass": train_step.kept(task, ways["ours"]),
        "peak bytes beyond the weights": None if options.tiny else peak_bytes(ours, device),
        "estimated bytes": dict(task.memory(1)),
    }


def correction(options: Options, size: SizeName) -> dict[str, Any]:
    """Sampling with corrections against sampling without: time measured, operations counted."""
    device, count = torch.device("cpu" if options.tiny else "cuda"), 2 if options.tiny else 10
    backbone = open_size(size, device, None if options.tiny else sampling.FORMATS[options.mixed_precision])
    adapter = adapter_for(backbone, **(SMALL_ADAPTER if options.tiny else {})).eval()
    chosen = {
        way: one for way, one in sampling.ways_for(count).items() if way in ("plain", "published", "fused", "default")
    }
    drawing = {
        way: partial(sampling.draw, sampling.Drawing(backbone, adapter, 1), way, one, count)
        for way, one in chosen.items()
    }
    timed = compared(in_turns(drawing, rounds(options), device, warm(options)))
    counted = sampling.products(SIZES[size], {way: sampling.ways_for(25)[way] for way in chosen})
    return {
        "milliseconds": {one.name: one.ms for one in timed},
        "time against plain": {one.name: one.ratio for one in timed},
        "operations against plain": {way: flops / counted["plain"] for way, flops in counted.items()},
    }


def rounds(options: Options) -> int:
    return 1 if options.tiny else options.rounds


def warm(options: Options) -> int:
    """Rounds before those that count."""
    return 0 if options.tiny else 1


def pocket(options: Options) -> dict[str, Any]:
    """Stage 1 on the transformer pocket: seconds a step, and the losses at the end."""
    steps, batch = (1, 1) if options.tiny else (300, 64)
    model = EMBEDDED if options.tiny else POCKET
    words = ["--pretrained_model_name_or_path", model, "--run_name", "run"]
    words += ["--max_train_steps", str(steps), "--train_batch_size", str(batch), "--report_to", "none"]
    words += [
        "--validation_steps",
        "0",
        "--resume_from_checkpoint",
        "none",
        "--logging_steps",
        str(max(1, steps // 10)),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        if code := main_stage1([*words, "--output_dir", scratch]):
            raise RuntimeError(f"train_stage1.py ended with exit code {code}")
        seconds = time.monotonic() - started
        last = json.loads((Path(scratch) / "run/log.jsonl").read_text().splitlines()[-1])
    return {"model": model, "steps": steps, "batch": batch, "seconds a step": seconds / steps, "last": last}


def highlights(entry: dict[str, Any]) -> str:
    result = entry.get("result")
    if result is None:
        return str(entry.get("reason", "")).splitlines()[-1][:120]
    shown = {name: value for name, value in result.items() if isinstance(value, int | float)}
    for name in ("time against plain", "operations against plain"):
        shown |= {f"{way}, {name}": value for way, value in result.get(name, {}).items() if way != "plain"}
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, default=str) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(parse_options(Options, sys.argv[1:], "gpu.py")))
