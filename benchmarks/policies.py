"""What number formats, memory layout and compilation change: a training step and a guided sampling step by each.

    python benchmarks/policies.py [--size narrow] [--batch 4] [--rounds 3] [--gpu] [--out docs/results/performance]

Each policy has a model of its own with the same weights. They take turns; compiling happens while warming up. Beside
the time stands how far the predictions are from those of float32, as a share of their size.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models import SizeName, adapter_for, open_size
from sampling import Drawing, draw
from timing import compared, in_turns, keep, table
from torch import Tensor
from train_step import Options as StepOptions
from train_step import examples, stepping, task_for, ways_for

from dpt.backbone import Backbone
from dpt.backbone.device import apply_speedups
from dpt.cli.common.console import parse_options
from dpt.sampling.options import Correction


@dataclass(frozen=True)
class Policy:
    dtype: str = "float32"
    channels_last: bool = False
    compiled: bool = False


POLICIES = {
    "float32": Policy(),
    "float32, channels_last": Policy(channels_last=True),
    "float32, compiled": Policy(compiled=True),
    "bf16": Policy("bfloat16"),
    "bf16, channels_last": Policy("bfloat16", channels_last=True),
    "bf16, compiled": Policy("bfloat16", compiled=True),
    "bf16, compiled, channels_last": Policy("bfloat16", channels_last=True, compiled=True),
}


@dataclass(frozen=True)
class Options:
    size: SizeName = "narrow"
    batch: int = 4
    rounds: int = 3
    policies: tuple[str, ...] = tuple(POLICIES)
    """The first is what the others are compared with."""
    gpu: bool = False
    out: Path | None = None


def main(options: Options) -> None:
    device = torch.device("cuda" if options.gpu else "cpu")
    training: dict[str, Callable[[], object]] = {}
    drawing: dict[str, Callable[[], object]] = {}
    predicted: dict[str, Tensor] = {}
    warming: dict[str, float] = {}
    for name in options.policies:
        policy = POLICIES[name]
        drawn, trained = (opened(options.size, policy, device) for _ in range(2))
        one = Drawing(drawn, adapter_for(drawn).eval(), options.batch)
        drawing[name] = partial(draw, one, "plain", Correction(), 1)
        predicted[name] = prediction(drawn, one)
        task: Any = task_for(StepOptions(size=options.size), trained)
        side = trained.default_latent_size[0] * trained.vae_scale_factor
        training[name] = stepping(task, ways_for(task, examples(trained, side, options.batch).to(device))["ours"])
        begun = time.perf_counter()
        training[name]()
        drawing[name]()
        warming[name] = time.perf_counter() - begun
    steps, draws = (compared(in_turns(works, options.rounds, device)) for works in (training, drawing))
    exact = predicted[options.policies[0]]
    apart = {name: float((one - exact).norm() / exact.norm()) for name, one in predicted.items()}
    rows = [
        [one.name, f"{one.ms:,.0f}", one.compared, f"{other.ms:,.0f}", other.compared, f"{apart[one.name]:.1e}",
         f"{warming[one.name]:.0f}"]
        for one, other in zip(steps, draws, strict=True)
    ]  # fmt: skip
    first = options.policies[0]
    heads = [f"{options.size}, batch {options.batch}", "stage 2, ms", f"against {first} (range)", "drawing, ms",
             f"against {first} (range)", "apart", "first of each, s"]  # fmt: skip
    numbers = {"options": options, "training": steps, "drawing": draws, "apart": apart, "first": warming}
    keep(options.out, "policies", table(heads, rows), numbers, device)


def opened(size: SizeName, policy: Policy, device: torch.device) -> Backbone:
    backbone = open_size(size, device, policy.dtype)
    apply_speedups(backbone, compiled=policy.compiled, channels_last=policy.channels_last)
    return backbone


@torch.no_grad()
def prediction(backbone: Backbone, drawing: Drawing) -> Tensor:
    return backbone.predict(drawing.noise, 500, drawing.text).float()


if __name__ == "__main__":
    main(parse_options(Options, sys.argv[1:], "policies.py"))
