"""Does the memory of a long training grow?

    python -m tests.faults.long_run [--minutes 65] [--out runs/long_run]

Runs stage 2 on the smallest model, stops it, and resumes it in one process for so many minutes, with saves,
deletions, weight averaging and validations all the time. Its memory (RSS, and the anonymous part of it) is written
every few seconds to OUT/memory.jsonl; at the end it is stopped and must say that it can be resumed. OUT/slope.json has
the regression line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dpt.cli.common.console import parse_options
from dpt.training.engine.observers import EXIT_STOPPED
from tests.training import tiny_stage1

ROOT = Path(__file__).parents[2]
FLAGS = shlex.split(
    "--unet_feature up0 --hidden_dim 16 --nheads 2 --dim_feedforward 32 --num_queries_matching 3 --num_queries_rec 5 "
    "--lora_rank 2 --train_batch_size 2 --val_batch_size 4 --validation_scenes 8 --ema_decay 0.99 --logging_steps 10 "
    "--checkpointing_steps 20 --checkpoints_total_limit 3 --validation_steps 40 --learning_rate 1e-4"
)
BLOCK_MINUTES = 2.0
"""Neighbouring readings are not independent; means over so many minutes nearly are."""


@dataclass(frozen=True)
class Options:
    minutes: float = 65.0
    warm_up: tuple[float, ...] = (10.0, 20.0)
    """Minutes at the beginning that a line leaves out: one line for each."""
    every: float = 5.0
    """Seconds between two readings."""
    out: Path = Path("runs/long_run")


def main(options: Options) -> None:
    out = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model = tiny_stage1.model(out / "model")
    command = [sys.executable, str(ROOT / "train_stage2.py"), "--pretrained_model_name_or_path", str(model), *FLAGS,
               "--output_dir", str(out / "run"), "--max_train_steps", "100000000"]  # fmt: skip
    with (out / "output.txt").open("w") as output:
        first = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        wait_for(out / "run" / "checkpoint-20" / "manifest.json")
        stop(first)
        second = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        readings = watch(second, options, out / "memory.jsonl")
        stop(second)
    result = summary(readings, options, out / "run")
    (out / "slope.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def wait_for(file: Path, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{file} did not come within {seconds:.0f} s")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    if (code := process.wait(120)) != EXIT_STOPPED:
        sys.exit(f"the run ended with exit code {code}, not {EXIT_STOPPED}")


def watch(process: subprocess.Popen[bytes], options: Options, file: Path) -> list[dict[str, float]]:
    began = time.monotonic()
    readings: list[dict[str, float]] = []
    with file.open("w") as written:
        while (minutes := (time.monotonic() - began) / 60) < options.minutes:
            if process.poll() is not None:
                sys.exit(f"the run ended by itself with exit code {process.returncode}")
            readings.append({"minutes": round(minutes, 4), **memory_of(process.pid)})
            written.write(json.dumps(readings[-1]) + "\n")
            written.flush()
            time.sleep(options.every)
    return readings


def memory_of(process: int) -> dict[str, float]:
    """In MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", status, re.M)}
    return {"rss": kib["VmRSS"] / 1024, "anonymous": kib["RssAnon"] / 1024}


def summary(readings: list[dict[str, float]], options: Options, root: Path) -> dict[str, Any]:
    steps = [json.loads(line)["step"] for line in (root / "log.jsonl").read_text().splitlines()]
    return {
        "minutes": round(readings[-1]["minutes"], 1),
        "readings": len(readings),
        "steps": steps[-1],
        "saves": steps[-1] // 20,
        "validations": steps[-1] // 40,
        "cores": os.cpu_count(),
        **{
            f"{kind}_after_{warm_up:g}_minutes": slope(readings, kind, warm_up)
            for kind in ("rss", "anonymous")
            for warm_up in options.warm_up
        },
    }


def slope(readings: list[dict[str, float]], kind: str, warm_up: float) -> dict[str, Any]:
    """The line through the means of blocks, with its 95 % interval (Student's t)."""
    selected = [item for item in readings if item["minutes"] >= warm_up]
    minutes, mib = [item["minutes"] for item in selected], [item[kind] for item in selected]
    block = (np.asarray(minutes) // BLOCK_MINUTES).astype(int)
    x = np.array([np.mean(np.asarray(minutes)[block == item]) for item in np.unique(block)])
    y = np.array([np.mean(np.asarray(mib)[block == item]) for item in np.unique(block)])
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * line.stderr
    return {
        "mean_mib": round(float(y.mean()), 2),
        "first_block_mib": round(float(y[0]), 2),
        "last_block_mib": round(float(y[-1]), 2),
        "slope_mib_per_hour": round(60 * float(line.slope), 4),
        "interval_mib_per_hour": [round(60 * float(end), 4) for end in (line.slope - half, line.slope + half)],
    }


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "python -m tests.faults.long_run"))
