"""One loop for any task. What it does at a step is a function of the weights, the step and the seed: no history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dpt.backbone.rng import SampleRNG
from dpt.data.example import Batch
from dpt.data.stream import Stream, load
from dpt.distributed import any_process, any_true, barrier, require_same_step, sum_over
from dpt.errors import UserError
from dpt.training.engine import checkpoint, run_folder
from dpt.training.engine.interrupts import NonFiniteSteps, StopRequest
from dpt.training.engine.logging import Metrics, banner
from dpt.training.engine.optim import Update
from dpt.training.engine.settings import BatchPlan, Settings, StepRange, rate
from dpt.training.engine.task import Task

Micro = tuple[list[int], Batch]

CLOCK_NAMES = ("seconds", "data_share")
"""Entries of the log that say how fast it was: the only ones that another run of the same may differ in."""


@dataclass(frozen=True)
class Outcome:
    step: int
    finished: bool
    """False if the run was asked to stop before its last step."""


class Loop:
    def __init__(
        self,
        task: Task,
        stream: Stream,
        settings: Settings,
        root: Path,
        config: run_folder.Config,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.settings, self.root, self.accelerator = task, settings, root, accelerator
        self.stream = stream.only(task.parts)
        self.split = BatchPlan(
            settings.train_batch_size,
            settings.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self._main = accelerator.is_main_process
        self.config = {**config, "global_batch": self.split.global_batch}
        self.update = Update(task.trained, settings)
        self.meters = Metrics(accelerator.device)
        self.step = 0
        self.saved_at = -1
        self.bad_steps = NonFiniteSteps(settings.max_bad_steps, self._ids)
        self.waited, self.began = 0.0, time.monotonic()

    def run(self, resume: str = run_folder.LATEST, reset_optimizer: bool = False) -> Outcome:
        """Train to the last step, or until asked to stop; what was reached is saved either way."""
        with run_folder.claimed(self.root, self.config) if self._main else nullcontext():
            self._begin(resume, reset_optimizer)
            return self._go_on()

    def _go_on(self) -> Outcome:
        stopped = False
        with (
            StopRequest() as request,
            tqdm(total=self.settings.max_train_steps, initial=self.step, unit="step", disable=not self._main) as bar,
        ):
            for micro_batches in self._micro_batches():
                self.take_step(micro_batches)
                bar.update()
                self._report(bar)
                self._validate_if_due(bar)
                stopped = self._asked_to_stop(request)
                if stopped or self.step % self.settings.checkpointing_steps == 0:
                    self._save()
                if stopped:
                    break
            self._save()
        self._throw_old_away()
        return Outcome(self.step, finished=not stopped)

    def take_step(self, micro_batches: list[Micro]) -> None:
        """One update by the gradient of the whole global batch."""
        share = self._share([batch for _, batch in micro_batches])
        mean: dict[str, Tensor] = {}
        for positions, batch in micro_batches:
            chance = SampleRNG(self.settings.seed, positions)
            chance.seed_dropout()
            losses = self.task.losses(batch.to(self.accelerator.device, non_blocking=True), chance, share)
            losses["loss"] = self._total(losses)
            (losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                mean[name] = mean.get(name, 0) + value.detach() / len(micro_batches)
        self.update.average_gradients(self.accelerator)
        norm, bad = self.update.apply(
            self._rate(self.step), any_process(self.accelerator, ~torch.isfinite(mean["loss"]))
        )
        self.step += 1
        self.meters.add(self.step, {**mean, "grad_norm": norm}, bad)

    def _share(self, batches: list[Batch]) -> Tensor:
        """What is counted in the global batch, at least one, per micro-batch."""
        own = torch.tensor(float(sum(map(self.task.count, batches))), device=self.accelerator.device)
        return sum_over(self.accelerator, own).clamp(min=1) / self.split.micro_batches

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        weighted = [weight * losses[name] for name, weight in self.task.weights.items() if name in losses]
        return torch.stack(weighted).sum()

    def _rate(self, step: int) -> float:
        s = self.settings
        return rate(s.lr_scheduler, step, s.max_train_steps, s.learning_rate, s.lr_warmup_steps)

    # Begin

    def _begin(self, resume: str, reset_optimizer: bool) -> None:
        barrier(self.accelerator)
        start = run_folder.starting_point(self.root, resume)
        if start is None and reset_optimizer and self._main:
            print("warning: --reset_optimizer has no effect: there is no checkpoint to resume")
        if start is not None:
            self._restore(start, reset_optimizer)
        require_same_step(self.accelerator, self.step, self.root)
        if self._main:
            run_folder.rewind(self.root, self.step)
            self._announce(start)
        self.task.trained.train()
        barrier(self.accelerator)

    def _restore(self, start: Path, reset_optimizer: bool) -> None:
        groups, state = checkpoint.load(start)
        if "config" not in state:
            raise UserError(f"{start} is not a checkpoint of this kind of run: it does not say how it was configured")
        run_folder.check_same(state["config"], self.config, f"{start} is a checkpoint of a run")
        if state["step"] > self.settings.max_train_steps:
            raise UserError(f"{start} is past --max_train_steps {self.settings.max_train_steps}")
        self.update.restore(groups, str(start), reset_optimizer)
        self.meters.restore(groups["meters"], state["meters"])
        self.bad_steps.in_a_row = int(state["bad_in_a_row"])
        self.step = self.saved_at = int(state["step"])

    def _announce(self, start: Path | None) -> None:
        held = self.task.memory(self.settings.train_batch_size)
        print(banner(self.update.parameters, self.update.bytes_each, self.split, held))
        if start is not None:
            print(f"continuing after step {self.step} from {start}")

    # The way of the data

    def _micro_batches(self) -> Iterator[list[Micro]]:
        """The micro-batches of each step to come."""
        steps = StepRange(self.split, self.step, self.settings.max_train_steps)
        workers, pin_memory = self.settings.dataloader_num_workers, self.accelerator.device.type == "cuda"
        batches = zip(steps, load(self.stream, steps, workers, pin_memory=pin_memory), strict=True)
        self.began = time.monotonic()
        for _ in range(self.step, self.settings.max_train_steps):
            before = time.monotonic()
            micro_batches = [next(batches) for _ in range(self.split.accumulation)]
            self.waited += time.monotonic() - before
            yield micro_batches

    # Now and then

    def _asked_to_stop(self, request: StopRequest) -> bool:
        """Several processes must stop at the same step, and ask one another only when they wait anyway."""
        if self.step >= self.settings.max_train_steps:
            return False
        if self.split.processes > 1 and self.step % self.settings.logging_steps:
            return False
        return any_true(self.accelerator, request.made)

    def _report(self, bar: tqdm[Any]) -> None:
        if self.step % self.settings.logging_steps and self.step < self.settings.max_train_steps:
            return
        reading = self.meters.read(self.accelerator)
        seconds = time.monotonic() - self.began
        record = {
            "step": self.step,
            "images": self.step * self.split.global_batch,
            "lr": self._rate(self.step - 1),
            **reading.means,
            "bad_steps": len(reading.bad),
        }
        clock = {"seconds": round(seconds, 3), "data_share": round(self.waited / seconds, 4)}
        bar.set_postfix({name: f"{value:.4g}" for name, value in reading.means.items()}, refresh=False)
        self._note({**record, **clock}, prefix="train")
        self.bad_steps.see(reading.steps, reading.bad)

    def _ids(self, step: int) -> list[str]:
        """The examples of the global batch of the update that ended as `step`."""
        first = (step - 1) * self.split.global_batch
        return [self.stream[position].id for position in range(first, first + self.split.global_batch)]

    def _validate_if_due(self, bar: tqdm[Any]) -> None:
        every = self.settings.validate_every
        if not every or (self.step % every and self.step < self.settings.max_train_steps):
            return
        shares = self.validate()
        if self._main:
            bar.write(f"step {self.step}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        self._note({"step": self.step, "validation": shares}, prefix="validation")

    def validate(self) -> dict[str, float]:
        """Share of right answers to each question that was asked."""
        self.task.trained.eval()
        with torch.no_grad(), self.update.averaged():
            tally = self.task.validate(self.accelerator.process_index, self.accelerator.num_processes)
        self.task.trained.train()
        counts = torch.tensor(list(tally.values()), dtype=torch.float32, device=self.accelerator.device)
        right, asked = sum_over(self.accelerator, counts.reshape(-1, 2)).T.tolist()
        return {name: r / a for name, r, a in zip(tally, right, asked, strict=True) if a}

    def _note(self, record: dict[str, Any], prefix: str) -> None:
        if self._main:
            run_folder.note(self.root, record)
        values = record.get("validation", record)
        self.accelerator.log({f"{prefix}/{name}": value for name, value in values.items()}, step=self.step)

    def _save(self) -> None:
        if self.saved_at == self.step:
            return
        groups = {**self.update.tensors(), "meters": self.meters.tensors(self.accelerator)}
        state = {
            "images": self.step * self.split.global_batch,
            "config": self.config,
            "meters": list(self.meters.names),
            "bad_in_a_row": self.bad_steps.in_a_row,
        }
        if self._main:
            run_folder.settle(self.root)
            checkpoint.save(self.root, self.step, groups, state)
        self._throw_old_away()
        self.saved_at = self.step
        barrier(self.accelerator)

    def _throw_old_away(self) -> None:
        """Also when nothing was to be saved: an earlier process may have been killed just before it."""
        if self._main and self.settings.checkpoints_total_limit:
            checkpoint.keep_newest(self.root, self.settings.checkpoints_total_limit)
