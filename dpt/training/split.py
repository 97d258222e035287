"""How the samples of a run are dealt out to steps, processes and micro-batches.

The n-th sample of a run is the same picture with the same noise whether it is seen by one process or by eight, in
one piece or accumulated, before or after a resume: see `dpt.backbone.randomness.Chance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


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
