"""How long a command takes to answer: each in a process of its own, in turns.

    python benchmarks/startup.py [--rounds 5] [--out docs/results/performance]

`--help` should need no library that is heavy; beside it, what importing torch and diffusers takes, which a command
that works must wait for.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import compared, in_turns, keep, table

from dpt.cli.common.console import parse_options

ROOT = Path(__file__).resolve().parents[1]
HELP = {
    "python -c pass": ["-c", "pass"],
    "txt2img.py --help": ["txt2img.py", "--help"],
    "train_stage1.py --help": ["train_stage1.py", "--help"],
    "train_stage2.py --help": ["train_stage2.py", "--help"],
    "dpt --help": ["-m", "dpt", "--help"],
    "dpt bench run --help": ["-m", "dpt", "bench", "run", "--help"],
    "dpt probe --help": ["-m", "dpt", "probe", "--help"],
    "dpt cache --help": ["-m", "dpt", "cache", "--help"],
    "import torch": ["-c", "import torch"],
    "import diffusers, transformers": [
        "-c", "from diffusers import UNet2DConditionModel; from transformers import CLIPTextModel",
    ],
    "a picture of one step": ["txt2img.py", "--n_samples", "1", "--num_timesteps", "1", "--correction_factor", "0"],
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    rounds: int = 5
    out: Path | None = None


def main(options: Options) -> None:
    ways: dict[str, Callable[[], object]] = {name: partial(started, words) for name, words in HELP.items()}
    took = in_turns(ways, options.rounds, torch.device("cpu"))
    timed = compared(took)
    rows = [[one.name, f"{one.ms / 1e3:.2f} ({min(took[one.name]):.2f}-{max(took[one.name]):.2f})"] for one in timed]
    keep(options.out, "startup", table(["command", "seconds (range)"], rows), timed, torch.device("cpu"))


def started(words: list[str]) -> None:
    scratch = ["--outdir", "outputs/startup"] if "--n_samples" in words else []
    subprocess.run([sys.executable, *words, *scratch], cwd=ROOT, check=True, capture_output=True)


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "startup.py"))
