"""The tasks under attack, on the smallest model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpt.backbone import open_backbone
from dpt.training.engine.loop import Loop
from tests.training import tiny_hps, tiny_stage1, tiny_stage2, toy

WHOLE: Mapping[str, Any] = {"checkpoints_total_limit": None}
"""Keep all checkpoints."""
SETTINGS: Mapping[str, Any] = {
    "max_train_steps": 6,
    "train_batch_size": 1,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "ema_decay": 0.9,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 2,
    "logging_steps": 3,
    "validation_steps": 4,
}
"""Save at every step and delete old checkpoints; loss averages span saves; all in one epoch."""


@dataclass(frozen=True)
class Subject:
    name: str
    start: Callable[..., Loop]
    """A new loop in a folder, as a new process would build it; keyword arguments override SETTINGS."""

    @property
    def steps(self) -> int:
        return int(SETTINGS["max_train_steps"])


def line() -> Subject:
    """Without a model: a step takes a millisecond, so nearly all time goes into saving."""
    return Subject("line", lambda root, **other: toy.loop(root, toy.Line(dropout=0.3), **{**SETTINGS, **other}))


def stage1(model: Path) -> Subject:
    opened = open_backbone(model, device="cpu")

    def start_loop(root: Path, **other: Any) -> Loop:
        return tiny_stage1.loop(root, tiny_stage1.task(opened, 1, {"dropout": 0.1}), **{**SETTINGS, **other})

    return Subject("stage 1", start_loop)


def stage2(model: Path) -> Subject:
    """To be started in a child process: it injects its LoRA into the model."""
    opened = open_backbone(model, device="cpu")
    opened.prepare_for_gradients()

    def start_loop(root: Path, **other: Any) -> Loop:
        task = tiny_stage2.task(opened, adapter={"dropout": 0.1}, validation=1)
        task.memory = lambda examples: {}  # type: ignore[method-assign]  # slow
        return tiny_stage2.loop(root, task, **{**SETTINGS, **other})

    return Subject("stage 2", start_loop)


def transformer(folder: Path) -> Subject:
    """Stage 2 on a transformer, whose model is in a folder of its own; in a child process, as stage 2."""
    opened = open_backbone(tiny_stage2.transformer(folder / "transformer"), device="cpu")

    def start_loop(root: Path, **other: Any) -> Loop:
        task = tiny_stage2.task(opened, adapter={"dropout": 0.1}, validation=1)
        task.memory = lambda examples: {}  # type: ignore[method-assign]  # slow
        return tiny_stage2.loop(root, task, framing=tiny_stage2.TRANSFORMER_FRAMING, **{**SETTINGS, **other})

    return Subject("stage 2 on a transformer", start_loop)


def hps(folder: Path) -> Subject:
    """To be started in a child process, as stage 2. The model and the images are in a folder of its own."""
    tiny_hps.model(folder / "hps")

    def start_loop(root: Path, **other: Any) -> Loop:
        task = tiny_hps.task(open_backbone(folder / "hps", device="cpu"))
        task.memory = lambda examples: {}  # type: ignore[method-assign]  # slow
        return tiny_hps.loop(root, folder / "hps", task, **{**SETTINGS, **other})

    return Subject("hps", start_loop)
