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

from dpt.pocket.optim import MasterWeights, rate
from dpt.pocket.recipe import Schedule
from dpt.pocket.workers import Workers
from dpt.training.engine import checkpoint

SAVE_SECONDS = 240

LOG_EVERY = 50

ALONE = Workers()


class Stage(Protocol):
    name: str
    model: nn.Module

    def losses(self, step: int, rows: range) -> dict[str, Tensor]:
        """Named scalars over those rows of the step's batch; the one called "loss" is minimised."""


def run(stage: Stage, schedule: Schedule, folder: Path, until: float | None = None, workers: Workers = ALONE) -> bool:
    """Train a stage to its last step, or to the clock time `until`; True when it is complete.

    Afterwards the stage's model holds the averaged weights.
    """
    dtype = getattr(torch, schedule.dtype)
    optimiser = MasterWeights(stage.model, dtype, (0.9, schedule.beta2), schedule.weight_decay)
    step = _resume(optimiser, schedule, folder, stage.name)
    saved = time.monotonic()
    rows = workers.rows(schedule.batch)
    late = False
    stage.model.train()
    with tqdm(total=schedule.steps, initial=step, desc=stage.name, unit="step", disable=not workers.first) as bar:
        while step < schedule.steps and not late:
            losses = stage.losses(step, rows)
            losses["loss"].backward()
            late = workers.average(optimiser.take_gradients(), until is not None and time.time() > until)
            lr = rate(step, schedule.steps, schedule.learning_rate, schedule.warmup, schedule.decay)
            norm = optimiser.step(lr, schedule.clip, min(schedule.averaging, (1 + step) / (10 + step)))
            step += 1
            bar.update()
            if not workers.first:
                continue
            if step % LOG_EVERY == 0:
                values = {"norm": norm, **losses}
                _log(folder, bar, {"step": step, "lr": lr} | {k: float(v) for k, v in values.items()})
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(optimiser, schedule, folder, step)
                saved = time.monotonic()
    if workers.first:
        _save(optimiser, schedule, folder, step)
    workers.wait()
    _finish(stage, optimiser)
    return step >= schedule.steps


def _finish(stage: Stage, optimiser: MasterWeights) -> None:
    stage.model.float().eval()
    with torch.no_grad():
        for p, average in zip(optimiser.working, optimiser.average, strict=True):
            p.copy_(average)


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


def _log(folder: Path, bar: tqdm, values: dict[str, float]) -> None:
    bar.set_postfix({k: f"{v:.4f}" for k, v in values.items() if k not in ("step", "lr")}, refresh=False)
    with (folder / "log.jsonl").open("a") as stream:
        stream.write(json.dumps(values) + "\n")
