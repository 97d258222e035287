"""What happened since the last reading, kept on the device until it is asked for: one transfer per reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from dpt.training.processes import mean_over


@dataclass(frozen=True)
class Reading:
    means: dict[str, float]
    """Of the steps that were applied; empty if none was."""
    steps: tuple[int, ...]
    """Since the last reading."""
    bad: tuple[int, ...]
    """Those of them that were not finite and not applied."""


class Meters:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.sums: Tensor | None = None
        self.flags: list[Tensor] = []
        self.steps: list[int] = []

    def add(self, step: int, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """Values of one step, of which each process has its own; `bad` is the same for all."""
        if not self.names:
            self.names = tuple(values)
        stacked = torch.stack([values[name].detach().float().to(self.device) for name in self.names])
        kept = torch.where(bad, torch.zeros_like(stacked), stacked)
        self.sums = kept if self.sums is None else self.sums + kept
        self.flags.append(bad.float())
        self.steps.append(step)

    def read(self, accelerator: Accelerator) -> Reading:
        sums, flags = self._held()
        numbers = torch.cat([mean_over(accelerator, sums), flags]).tolist()
        totals, bad = numbers[: len(self.names)], numbers[len(self.names) :]
        good = bad.count(0.0)
        means = {name: total / good for name, total in zip(self.names, totals, strict=True)} if good else {}
        steps = tuple(self.steps)
        self._clear()
        return Reading(means, steps, tuple(step for step, flag in zip(steps, bad, strict=True) if flag))

    def tensors(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """What a checkpoint between two readings needs, so that the next reading is the uninterrupted run's."""
        sums, flags = self._held()
        steps = torch.tensor(self.steps, dtype=torch.int64)
        return {"sums": mean_over(accelerator, sums), "flags": flags, "steps": steps}

    def restore(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        if len(tensors["steps"]) == 0:
            return
        self.names = tuple(names)
        self.sums = tensors["sums"].to(self.device)
        self.flags = list(tensors["flags"].to(self.device).unbind())
        self.steps = tensors["steps"].tolist()

    def _held(self) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(len(self.names), device=self.device) if self.sums is None else self.sums
        return sums, torch.stack(self.flags) if self.flags else torch.zeros(0, device=self.device)

    def _clear(self) -> None:
        self.sums, self.flags, self.steps = None, [], []
