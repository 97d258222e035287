"""The loop's settings, learning-rate schedules, and which samples go to which step, process and micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from dpt.errors import UserError

Shape = Callable[[float], float]
"""From progress after the warm-up, in [0, 1), to a fraction of the peak rate."""

POLYNOMIAL_END = 1e-7
"""diffusers' polynomial schedule ends at this rate, whatever the peak."""


def _polynomial(peak: float) -> Shape:
    end = POLYNOMIAL_END / peak
    return lambda done: (1 - end) * (1 - done) + end


SHAPES: dict[str, Callable[[float], Shape]] = {
    "constant": lambda peak: lambda done: 1.0,
    "constant_with_warmup": lambda peak: lambda done: 1.0,
    "linear": lambda peak: lambda done: 1 - done,
    "cosine": lambda peak: lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    # One cycle, as in diffusers' training scripts: the cosine.
    "cosine_with_restarts": lambda peak: lambda done: 0.5 * (1 + math.cos(math.pi * (done % 1.0))),
    "polynomial": _polynomial,
}

FLAT = ("constant", "constant_with_warmup")
"""Schedules whose rate at a step does not depend on where the run ends."""


def check_logit_normal(mean: float, std: float) -> None:
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise UserError(f"--logit_mean must be a number and --logit_std positive, not {mean:g} and {std:g}")


def check_schedule(name: str) -> None:
    if name not in SHAPES:
        raise UserError(f"--lr_scheduler is one of {', '.join(SHAPES)}, not {name!r}")


def learning_rate(name: str, step: int, steps: int, peak: float, warmup: int) -> float:
    """The rate of the update that follows `step` updates; linear from zero during the warm-up."""
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * SHAPES[name](peak)(done)


CHECKPOINTING_STEPS = 500


@dataclass(frozen=True)
class TrainSettings:
    """What the loop does. Fields with a published flag carry its name."""

    max_train_steps: int
    train_batch_size: int = 16
    """Examples per process and micro-batch."""
    gradient_accumulation_steps: int = 1
    seed: int = 1337
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    lr_decay_steps: int = 0
    """The rate falls linearly to zero over so many last steps, on top of the schedule."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    ema_decay: float = 0.0
    """Of the average of the weights that is validated and exported; 0 for none. It warms up: see optim."""
    use_8bit_adam: bool = False
    """AdamW's moments in 8 bits, by bitsandbytes."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it; 0 leaves them as they are."""
    checkpointing_steps: int | None = None
    """By default 500, or four times in a shorter run. A run also saves at its end and when it is stopped."""
    checkpoints_total_limit: int | None = None
    validation_steps: int | None = None
    """Steps between validations, 0 for none; by default `checkpointing_steps`, or 500, and at the end of the run."""
    logging_steps: int = 10
    """Steps between readings of the losses: in between, the host never waits for the device."""
    max_bad_steps: int = 3
    """End the run after so many consecutive steps with a non-finite loss or gradient. None of them is applied."""
    dataloader_num_workers: int = 0

    def __post_init__(self) -> None:
        check_schedule(self.lr_scheduler)
        for name in (
            "max_train_steps",
            "train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "max_bad_steps",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "adam_epsilon"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"--{name} must be positive, not {getattr(self, name)}")
        for name in (
            "lr_warmup_steps",
            "lr_decay_steps",
            "adam_weight_decay",
            "max_grad_norm",
            "dataloader_num_workers",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} cannot be negative, as {getattr(self, name)} is")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} is at least 0 and below 1, not {getattr(self, name)}")
        if self.lr_scheduler == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise UserError(
                f"--lr_scheduler polynomial ends at {POLYNOMIAL_END:g}, so --learning_rate must be more than that, "
                f"not {self.learning_rate}"
            )
        if self.adam_weight_decay == inf:
            raise UserError("--adam_weight_decay must be a number, not inf")
        for name in ("checkpointing_steps", "checkpoints_total_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.validation_steps is not None and self.validation_steps < 0:
            raise UserError(f"--validation_steps cannot be negative, as {self.validation_steps} is")

    @property
    def save_every(self) -> int:
        if self.checkpointing_steps is not None:
            return self.checkpointing_steps
        return min(CHECKPOINTING_STEPS, -(-self.max_train_steps // 4))

    @property
    def validate_every(self) -> int:
        if self.validation_steps is not None:
            return self.validation_steps
        return CHECKPOINTING_STEPS if self.checkpointing_steps is None else self.checkpointing_steps

    def learning_rate_at(self, step: int, peak: float | None = None) -> float:
        """The rate of the update that follows `step` updates."""
        peak = self.learning_rate if peak is None else peak
        rate = learning_rate(self.lr_scheduler, step, self.max_train_steps, peak, self.lr_warmup_steps)
        if self.lr_decay_steps:
            rate *= min(1.0, (self.max_train_steps - step) / self.lr_decay_steps)
        return rate


@dataclass(frozen=True)
class BatchPlan:
    """How each step's global batch is split into processes and micro-batches."""

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
class StepRange:
    """The positions of each micro-batch of one process, from one step to another."""

    plan: BatchPlan
    first: int
    last: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            for micro in range(self.plan.accumulation):
                yield list(self.plan.positions(step, micro))
