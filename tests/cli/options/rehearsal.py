"""A training command, stopped where its loop would begin: what it has made of its options, and steps one by one."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dpt.backbone import Backbone, open_backbone
from dpt.cli.common.console import plain_warnings
from dpt.cli.train import main as train
from dpt.cli.train.options import TrainOptions
from dpt.cli.train.stages import Stage2Options
from dpt.data.example import Batch
from dpt.training.engine.loop import Loop, Outcome
from dpt.training.tasks import discriminative


@dataclass
class Step:
    batch: Batch
    rate: float = 0.0
    noise: Tensor = field(default_factory=lambda: torch.empty(0))
    t: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: dict[str, float] = field(default_factory=dict)
    micro_batches: int = 0
    applied: dict[str, Tensor] = field(default_factory=dict)
    """Gradients as the optimizer is given them."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """After the step."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What would be saved of them: their average, if one is asked for."""
    workers: int = 0
    """Processes that were started for the data."""
    read: int = 0
    """How often the adapter's encoder was computed, …"""
    passed: int = 0
    """… and a layer of the UNet before the feature."""
    assigned: list[Tensor] = field(default_factory=list)
    """Which query answers for which box."""

    @property
    def applied_norm(self) -> float:
        return float(torch.stack([gradient.norm() for gradient in self.applied.values()]).norm())


class Rehearsal:
    def __init__(self, loop: Loop, options: TrainOptions) -> None:
        self.options = options
        self.loop: Any = loop
        self.task: Any = loop.task
        self.backbone: Any = self.task.backbone
        self.begun = {name: p.detach().clone() for name, p in self.task.trained.named_parameters()}
        self.steps: list[Step] = []

    @cached_property
    def _micro_batches(self) -> Iterator[Any]:
        self.task.trained.train()
        return iter(self.loop._micro_batches())

    def step(self, number: int = 0) -> Step:
        while len(self.steps) <= number:
            self.steps.append(self._take())
        return self.steps[number]

    def _take(self) -> Step:
        before = len(multiprocessing.active_children())
        micro_batches = next(self._micro_batches)
        started = len(multiprocessing.active_children()) - before
        step = Step(micro_batches[0], micro_batches=len(micro_batches), workers=started)
        update, backbone = self.loop.update, self.backbone
        ordinary, add = backbone.add_noise, self.loop.metrics.add

        def add_noise(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
            step.noise, step.t = noise, t
            return ordinary(z, noise, t)

        def noted(number: int, values: dict[str, Tensor], bad: Tensor) -> None:
            step.losses = {name: float(value) for name, value in values.items()}
            add(number, values, bad)

        def applied(optimizer: Any, *_: Any) -> None:
            step.rate = optimizer.param_groups[0]["lr"]
            step.applied = {name: p.grad.clone() for name, p in update.named.items()}

        def assign(*asked: Any) -> Any:
            found = ordinary_assign(*asked)
            step.assigned.append(found.query)
            return found

        def read(*_: Any) -> None:
            step.read += 1

        def passed(*_: Any) -> None:
            step.passed += 1

        layer = backbone.unet.down_blocks[1].attentions[0].transformer_blocks[0]
        hooks = [update.adam.register_step_pre_hook(applied), layer.register_forward_pre_hook(passed)]
        if hasattr(self.task, "adapter"):
            hooks.append(self.task.adapter.transformer.encoder.register_forward_hook(read))
        ordinary_assign = discriminative.assign
        with (
            patch.object(backbone, "add_noise", add_noise),
            patch.object(self.loop.metrics, "add", noted),
            patch.object(discriminative, "assign", assign),
        ):
            self.loop.take_step(micro_batches)
        for hook in hooks:
            hook.remove()
        step.weights = {name: p.detach().clone() for name, p in update.named.items()}
        with update.averaged():
            step.kept = {name: p.detach().clone() for name, p in update.named.items()}
        return step

    def close(self) -> None:
        """Processes that prepare batches do not end by themselves while somebody may still ask for one."""
        if (begun := self.__dict__.pop("_micro_batches", None)) is not None:
            begun.close()

    @cached_property
    def validation(self) -> dict[str, float]:
        found: dict[str, float] = self.loop.validation.run()
        return found

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Of a run that was taken to its end."""
        return [json.loads(line) for line in (self.loop.root / "log.jsonl").read_text().splitlines()]


@cache
def _opened(where: str, **how: Any) -> Backbone:
    return _open(where, **how)


_open = open_backbone


def opened(where: str, **how: Any) -> Backbone:
    """As from its folder, which is read once."""
    return copy(_opened(where, **how))


def opened_to_be_changed(where: str, **how: Any) -> Backbone:
    """With a UNet and a VAE of its own: no other part is ever changed."""
    found = opened(where, **how)
    found.unet, found.vae = deepcopy(found.unet), deepcopy(found.vae)
    return found


def rehearse(options: TrainOptions, builder: str, whole: bool = False) -> Rehearsal:
    caught: list[Rehearsal] = []
    ordinary = Loop.run

    def run(loop: Loop, *how: Any) -> Outcome:
        caught.append(Rehearsal(loop, options))
        return Outcome(ordinary(loop, *how).step if whole else 0, finished=False)

    with ExitStack() as around:
        around.enter_context(patch.object(Loop, "run", run))
        changed = isinstance(options, Stage2Options) or options.model.compile or options.model.channels_last
        around.enter_context(patch("dpt.backbone.open_backbone", opened_to_be_changed if changed else opened))
        # What a run says first takes longer than the run of a model as tiny as this.
        around.enter_context(patch.object(Loop, "_announce", lambda *_: None))
        # A half format is what the options ask for, and tiny enough for any CPU.
        around.enter_context(patch("dpt.backbone.device.cpu_supports_bfloat16", lambda: True))
        around.enter_context(plain_warnings())
        train.run(options, builder)
    return caught[0]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("checkpoint-*"))
