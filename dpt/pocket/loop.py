"""The small resumable loop under each stage of the pocket's making.

Data and noise of a step are a function of (seed, step), so that a run cut anywhere continues as if it had not been.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpt.pocket.recipe import Schedule
from dpt.training import checkpoint
from dpt.training.optimise import MasterWeights, rate

SAVE_SECONDS = 240
LOG_EVERY = 50


class Stage(Protocol):
    name: str
    model: nn.Module

    def losses(self, step: int) -> dict[str, Tensor]:
        """Named scalars of one step; the one called "loss" is minimised."""


def run(stage: Stage, schedule: Schedule, folder: Path, until: float | None = None) -> bool:
    """Train a stage to its last step, or to the clock time `until`; True when it is complete.

    Afterwards the stage's model holds the averaged weights.
    """
    dtype = getattr(torch, schedule.dtype)
    optimiser = MasterWeights(stage.model, dtype, (0.9, schedule.beta2), schedule.weight_decay)
    step = _resume(optimiser, schedule, folder, stage.name)
    saved = time.monotonic()
    stage.model.train()
    with tqdm(total=schedule.steps, initial=step, desc=stage.name, mininterval=5, unit="step") as bar:
        while step < schedule.steps and (until is None or time.time() < until):
            losses = stage.losses(step)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            lr = rate(step, schedule.steps, schedule.learning_rate, schedule.warmup, schedule.decay)
            norm = optimiser.step(lr, schedule.clip, min(schedule.averaging, (1 + step) / (10 + step)))
            step += 1
            bar.update()
            if step % LOG_EVERY == 0:
                _log(folder, bar, {"step": step, "lr": lr, "norm": float(norm)} | {k: float(v) for k, v in losses.items()})
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(optimiser, schedule, folder, step)
                saved = time.monotonic()
    _save(optimiser, schedule, folder, step)
    optimiser.use_average()
    stage.model.float().eval()
    with torch.no_grad():
        for p, average in zip(optimiser.working, optimiser.average, strict=True):
            p.copy_(average)
    return step >= schedule.steps


def _resume(optimiser: MasterWeights, schedule: Schedule, folder: Path, name: str) -> int:
    newest = checkpoint.newest_good(folder)
    if newest is None:
        return 0
    tensors, state = checkpoint.load(newest)
    optimiser.restore(tensors)
    print(f"{name}: continuing after step {state['step']}")
    return int(state["step"])


def _save(optimiser: MasterWeights, schedule: Schedule, folder: Path, step: int) -> None:
    checkpoint.save(folder, step, optimiser.tensors(), {"schedule": asdict(schedule)})
    checkpoint.keep_newest(folder, 2)


def _log(folder: Path, bar: tqdm, values: dict[str, float]) -> None:  # type: ignore[type-arg]
    bar.set_postfix({k: f"{v:.4f}" for k, v in values.items() if k not in ("step", "lr")}, refresh=False)
    with (folder / "log.jsonl").open("a") as stream:
        stream.write(json.dumps(values) + "\n")
