"""The training loop, for any task. A step is a function of the weights, the step and the seed: it has no history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor
from tqdm import tqdm

from dpt.backbone.rng import SampleRNG
from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.training.engine import run_folder
from dpt.training.engine.logging import Metrics, RunLog, Tracker, banner
from dpt.training.engine.observers import NonFiniteSteps, Outcome, RunObserver, StopRequest
from dpt.training.engine.optim import LossScaler, Update
from dpt.training.engine.run_folder import RunConfig, TrainingState
from dpt.training.engine.settings import BatchPlan, StepRange, TrainSettings
from dpt.training.engine.task import B, BatchStream, Task
from dpt.training.engine.validation import Validation


def run_task(
    task: Task[B],
    stream: BatchStream[B],
    settings: TrainSettings,
    root: Path,
    config: RunConfig,
    *,
    processes: Processes | None = None,
    resume: str = run_folder.LATEST,
    until: float | None = None,
) -> Outcome:
    """Train a task in the folder `root`, resuming a run that was left there, until its last step or a clock time."""
    return Loop(task, stream, settings, root, config, processes).run(resume, until=until)


class Loop(Generic[B]):
    def __init__(
        self,
        task: Task[B],
        stream: BatchStream[B],
        settings: TrainSettings,
        root: Path,
        config: RunConfig,
        processes: Processes | None = None,
        tracker: Tracker | None = None,
        update: Update | None = None,
        observer: RunObserver | None = None,
    ) -> None:
        self.task, self.settings, self.root, self.observer = task, settings, root, observer or RunObserver()
        self.stream = stream.only(task.parts)
        self.processes = processes or Processes()
        self.device = torch.device(self.processes.device)
        batch, accumulation = settings.train_batch_size, settings.gradient_accumulation_steps
        self.plan = BatchPlan(batch, accumulation, self.processes.rank, self.processes.count)
        self.config = replace(config, values={**config.values, "global_batch": self.plan.global_batch})
        self.log = RunLog(root, tracker, self.processes.is_main)
        scaler = LossScaler(self.device) if task.scales_loss else None
        self.update = update or Update(task.parameter_groups(), settings, scaler)
        self.validation = Validation(task, self.update, self.processes, settings, self.plan.global_batch)
        self.metrics = Metrics(self.device)
        self.bad_steps = NonFiniteSteps(settings.max_bad_steps, self._example_ids)
        self.step, self.saved_at = 0, -1

    def run(
        self, resume: str = run_folder.LATEST, reset_optimizer: bool = False, until: float | None = None
    ) -> Outcome:
        """Train to the last step, or until stopped by a signal or at a clock time; the state is saved either way."""
        main = self.processes.is_main
        total = self.settings.max_train_steps
        with run_folder.claimed(self.root, self.config) if main else nullcontext():
            validation_is_missing = self._start(resume, reset_optimizer)
            with StopRequest(until) as stop, tqdm(total=total, initial=self.step, unit="step", disable=not main) as bar:
                finished = not validation_is_missing or self._validate(stop, bar)
                if finished and not self.processes.any(self.observer.ends_run):
                    finished = self._train(stop, bar)
                self._save()
        return Outcome(self.step, finished)

    def _train(self, stop: StopRequest, bar: tqdm[Any]) -> bool:
        """Whether the last step was reached, and its validation was not cut short."""
        for micro_batches in self._micro_batches():
            self.take_step(micro_batches)
            bar.update()
            self._log_losses(bar)
            if self.processes.is_main:
                self.observer.after_step(self.step)
            if self._stop_is_requested(stop):
                return False
            if self.validation.is_due(self.step):
                if not self._validate(stop, bar):
                    return False
                if self.processes.any(self.observer.ends_run):
                    return True
            if self.step % self.settings.save_every == 0:
                self._save()
        return True

    def take_step(self, micro_batches: list[B]) -> None:
        """One update by the gradient of the whole global batch."""
        num_boxes = self._num_boxes(micro_batches)
        mean: dict[str, Tensor] = {}
        for micro, batch in enumerate(micro_batches):
            rng = SampleRNG(self.settings.seed, self.plan.positions(self.step, micro))
            rng.seed_dropout()
            losses = self.task.losses(batch.to(self.device, non_blocking=True), rng, num_boxes)
            losses["loss"] = self._total(losses)
            self.update.backward(losses["loss"] / len(micro_batches))
            for name, value in losses.items():
                mean[name] = mean.get(name, 0) + value.detach() / len(micro_batches)
        self.update.average_gradients(self.processes)
        loss_is_bad = self.processes.any_tensor(~torch.isfinite(mean["loss"]))
        mean["grad_norm"], status = self.update.apply(self.step, loss_is_bad)
        if self.update.loss_scaler is not None:
            mean["loss_scale"] = self.update.loss_scaler.scale
        self.step += 1
        self.metrics.add(self.step, mean, status)

    def _num_boxes(self, micro_batches: list[B]) -> Tensor:
        """Boxes per micro-batch, on average over the global batch, which counts as one at least."""
        own = torch.tensor(float(sum(map(self.task.count, micro_batches))), device=self.device)
        return self.processes.sum(own).clamp(min=1) / self.plan.micro_batches

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        weighted = [weight * losses[name] for name, weight in self.task.weights.items() if name in losses]
        if not weighted:
            raise ValueError(f"the task's weights name none of its losses, {', '.join(losses)}")
        return torch.stack(weighted).sum()

    def _micro_batches(self) -> Iterator[list[B]]:
        """The micro-batches of each remaining step."""
        steps = StepRange(self.plan, self.step, self.settings.max_train_steps)
        batches = self.stream.batches(steps, self.settings.dataloader_num_workers, self.device.type == "cuda")
        self.log.started = time.monotonic()
        for _ in range(self.step, self.settings.max_train_steps):
            before = time.monotonic()
            micro_batches = [next(batches) for _ in range(self.plan.accumulation)]
            self.log.data_seconds += time.monotonic() - before
            yield micro_batches

    def _start(self, resume: str, reset_optimizer: bool) -> bool:
        """Restore the newest checkpoint, if any; returns whether a stop left out the validation due at its step."""
        self.processes.barrier()
        start = run_folder.starting_point(self.root, resume)
        if start is None and reset_optimizer and self.processes.is_main:
            print("warning: --reset_optimizer has no effect: there is no checkpoint to resume")
        if start is not None:
            self._restore(start, reset_optimizer)
        self.processes.require_same_step(self.step, self.root)
        missing = False
        if self.processes.is_main:
            run_folder.rewind(self.root, self.step)
            own = start is not None and start.resolve().parent == self.root.resolve()
            missing = own and self.validation.is_due(self.step) and not run_folder.is_validated(self.root, self.step)
            self._announce(start)
            self.observer.started(self.step)
        self.task.trained.train()
        self.processes.barrier()
        return self.processes.any(missing)

    def _restore(self, start: Path, reset_optimizer: bool) -> None:
        groups, content = run_folder.load(start)
        state = TrainingState.parse(content, start)
        self.config.check_same(state.config, f"{start} is a checkpoint of a run")
        if state.step > self.settings.max_train_steps:
            raise UserError(f"{start} is past --max_train_steps {self.settings.max_train_steps}")
        self.update.restore(groups, str(start), reset_optimizer)
        self.metrics.restore(groups.get("meters", {}), state.metrics, str(start))
        self.bad_steps.in_a_row = state.bad_in_a_row
        self.step = self.saved_at = state.step

    def _announce(self, start: Path | None) -> None:
        memory = self.task.memory(self.settings.train_batch_size)
        print(banner(self.update.parameters, self.update.bytes_per_parameter, self.plan, memory))
        self.validation.announce()
        if start is not None:
            print(f"continuing after step {self.step} from {start}")

    def _stop_is_requested(self, stop: StopRequest) -> bool:
        """Several processes must stop at the same step; they synchronise only at steps that log, which wait anyway.

        After the last step a stop leaves out the validation, if one is due.
        """
        if self.step >= self.settings.max_train_steps and not self.validation.is_due(self.step):
            return False
        if self.plan.processes > 1 and self.step % self.settings.logging_steps:
            return False
        return self.processes.any(stop.made)

    def _log_losses(self, bar: tqdm[Any]) -> None:
        if self.step % self.settings.logging_steps and self.step < self.settings.max_train_steps:
            return
        snapshot = self.metrics.read(self.processes)
        record = {
            "step": self.step,
            "images": self.step * self.plan.global_batch,
            "lr": self.settings.learning_rate_at(self.step - 1),
            **snapshot.means,
            "bad_steps": len(snapshot.bad),
        }
        if self.update.loss_scaler is not None:
            record["overflowed_steps"] = len(snapshot.overflowed)
        bar.set_postfix({name: f"{value:.4g}" for name, value in snapshot.means.items()}, refresh=False)
        self.log.write({**record, **self.log.clock()}, "train")
        self.bad_steps.update(snapshot.steps, snapshot.bad)

    def _example_ids(self, step: int) -> list[str]:
        """The examples of the update that ended as `step`."""
        first = (step - 1) * self.plan.global_batch
        return [self.stream.example_id(position) for position in range(first, first + self.plan.global_batch)]

    def _validate(self, stop: StopRequest, bar: tqdm[Any]) -> bool:
        """Validate and log; False if a stop cut it short. The training clock does not run meanwhile."""
        began = time.monotonic()
        metrics = self.validation.run(stop)
        seconds = time.monotonic() - began
        self.log.started += seconds
        bar.unpause()
        if metrics is None:
            return False
        if self.processes.is_main and metrics:
            values = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            bar.write(f"step {self.step}: {values} (validated in {seconds:.0f} s)")
        self.log.write({"step": self.step, "validation": metrics, "seconds": round(seconds, 3)}, "validation")
        if self.processes.is_main:
            self.observer.after_validation(self.step, metrics)
        return True

    def _save(self) -> None:
        if self.saved_at != self.step:
            groups = {**self.update.tensors(), "meters": self.metrics.tensors(self.processes)}
            images, bad = self.step * self.plan.global_batch, self.bad_steps.in_a_row
            state = TrainingState(self.step, images, self.config.values, self.metrics.names, bad)
            if self.processes.is_main:
                run_folder.flush_log(self.root)
                run_folder.save(self.root, self.step, groups, state.plain())
            self.saved_at = self.step
        # Also when there was nothing to save: an earlier process may have been killed just before this.
        if self.processes.is_main and self.settings.checkpoints_total_limit:
            run_folder.keep_newest(self.root, self.settings.checkpoints_total_limit)
        self.processes.barrier()
