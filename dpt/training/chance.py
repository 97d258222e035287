"""Chance without history: what a sample meets is a function of (seed, its place in the run, purpose).

The n-th sample of a run is the same picture with the same noise whether it is seen by one process or by eight, in
one piece or accumulated, before or after a resume. Dropout is the exception: masks are drawn for a whole micro-batch,
keyed by its first sample, because drawing millions of numbers one sample at a time would cost more than the step.
They survive a resume bit for bit, but another split of the global batch draws others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpt.backbone.randomness import derived_seed, generator_for


@dataclass(frozen=True)
class Chance:
    seed: int
    positions: Sequence[int]
    """Where in the run each sample of the micro-batch stands."""

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B,*shape) of standard normal numbers, made on the CPU: the same on every device."""
        return torch.stack([torch.randn(*shape, generator=own) for own in self._generators(purpose)])

    def integers(self, below: int, purpose: str) -> Tensor:
        """(B,) of whole numbers in [0, below)."""
        return torch.cat([torch.randint(below, (1,), generator=own) for own in self._generators(purpose)])

    def seed_dropout(self) -> None:
        torch.manual_seed(derived_seed(self.seed, self.positions[0], "dropout"))

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        return (generator_for(self.seed, position, purpose) for position in self.positions)


@dataclass(frozen=True)
class Split:
    """How each step's global batch is dealt out."""

    batch: int
    """Examples of one micro-batch."""
    accumulation: int = 1
    process: int = 0
    processes: int = 1

    @property
    def micro_batches(self) -> int:
        """Of one step, over all processes."""
        return self.accumulation * self.processes

    @property
    def global_batch(self) -> int:
        return self.batch * self.micro_batches

    def positions(self, step: int, micro: int) -> range:
        first = step * self.global_batch + (micro * self.processes + self.process) * self.batch
        return range(first, first + self.batch)


@dataclass(frozen=True)
class Steps:
    """The positions of each micro-batch of one process, from one step to another."""

    split: Split
    first: int
    last: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            for micro in range(self.split.accumulation):
                yield list(self.split.positions(step, micro))
