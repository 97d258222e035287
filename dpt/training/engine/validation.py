"""Validation within a run: when it is due, its own progress bar, and its end as soon as a stop is requested."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from dpt.distributed import Processes
from dpt.training.engine.observers import StopRequest
from dpt.training.engine.optim import Update
from dpt.training.engine.settings import TrainSettings
from dpt.training.engine.task import Task


class _Stopped(Exception):
    """Leaves a validation between two batches."""


class Validation:
    def __init__(
        self, task: Task[Any], update: Update, processes: Processes, settings: TrainSettings, global_batch: int
    ) -> None:
        self.task, self.update, self.processes, self.settings = task, update, processes, settings
        self.training_examples = settings.max_train_steps * global_batch

    def is_due(self, step: int) -> bool:
        every = self.settings.validate_every
        if not every or self.is_skipped:
            return False
        return step % every == 0 or step >= self.settings.max_train_steps

    @property
    def is_skipped(self) -> bool:
        """A run that trains on fewer examples than a validation reads is validated only on request."""
        by_default = self.settings.validation_steps is None
        return by_default and self.training_examples < self.task.num_validation_examples

    def announce(self) -> None:
        if self.is_skipped:
            print(
                f"no validation: this run trains on {self.training_examples} examples and a validation reads "
                f"{self.task.num_validation_examples}; give --validation_steps to validate all the same"
            )

    def run(self, stop: StopRequest | None = None) -> dict[str, float] | None:
        """The mean of each metric over all processes, with averaged weights if there are any; None if stopped."""
        tally = self._own_tally(stop)
        if self.processes.any(tally is None):
            return None
        totals = torch.tensor(list((tally or {}).values()), dtype=torch.float32, device=self.processes.device)
        sums, counts = self.processes.sum(totals.reshape(-1, 2)).T.tolist()
        means = {name: total / count for name, total, count in zip(tally or {}, sums, counts, strict=True) if count}
        return self._with_total(means)

    def _with_total(self, means: dict[str, float]) -> dict[str, float]:
        """Where a validation computes several of the training losses, also their weighted sum, as the run logs it."""
        weighted = [weight * means[name] for name, weight in self.task.weights.items() if name in means and weight]
        return {**means, "loss": sum(weighted)} if len(weighted) > 1 else means

    def _own_tally(self, stop: StopRequest | None) -> Any:
        processes = self.processes
        own = len(range(processes.rank, self.task.num_validation_examples, processes.count))
        with tqdm(total=own, desc="validation", unit="example", leave=False, disable=not processes.is_main) as bar:

            def on_batch(examples: int) -> None:
                bar.update(examples)
                if stop is not None and stop.made:
                    raise _Stopped

            self.task.trained.eval()
            try:
                with torch.no_grad(), self.update.averaged():
                    return self.task.validate(processes.rank, processes.count, on_batch)
            except _Stopped:
                return None
            finally:
                self.task.trained.train()
