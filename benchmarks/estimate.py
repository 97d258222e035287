"""What stage 2 would hold at the size of Stable Diffusion 2.1, as a run estimates it before its first step.

    python benchmarks/estimate.py [--batch 8] [--mixed_precision bf16]

Nothing is computed, and no GPU is needed; `scale.py` compares estimates with measured peaks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import torch
from models import SizeName, open_size
from timing import table
from train_step import FORMATS, task_for
from train_step import Options as StepOptions

from dpt.cli.common.console import parse_options


@dataclass(frozen=True)
class Options:
    size: SizeName = "full"
    batch: int = 8
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"


def main(options: Options) -> None:
    backbone = open_size(options.size, torch.device("cpu"), FORMATS[options.mixed_precision])
    rows = []
    for checkpointing in (False, True):
        task = task_for(StepOptions(size=options.size, gradient_checkpointing=checkpointing), backbone)
        held = task.memory(options.batch)
        label = "with gradient checkpointing" if checkpointing else "without"
        rows.append([label, *(f"{value / 1e9:.1f}" for value in (*held.values(), sum(held.values())))])
        backbone.network.delete_adapters("dpt")
    print(table([f"stage 2, {options.size}, batch {options.batch}", *(f"{name}, GB" for name in held), "in all"], rows))


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "estimate.py"))
