"""AdamW over parameter groups, the moving average, fp16 loss scaling, and one update of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dpt.distributed import Processes
from dpt.errors import UserError
from dpt.training.engine.logging import APPLIED, BAD, OVERFLOWED
from dpt.training.engine.settings import TrainSettings
from dpt.training.engine.task import ParameterGroup

CheckpointTensors = Mapping[str, Mapping[str, Tensor]]
"""By group and name, as a checkpoint holds them."""


def require_eight_bit(device: torch.device) -> None:
    """Fail before anything is loaded or written."""
    if device.type != "cuda":
        raise UserError(f"--use_8bit_adam runs on CUDA devices only, and this run is on {device.type}")
    _bitsandbytes()


def _eight_bit_adamw(parameters: Sequence[Any], **options: Any) -> torch.optim.Optimizer:
    """Parameters of fewer than 4096 numbers keep 32-bit moments."""
    optimizer: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(parameters, **options)
    return optimizer


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except Exception as error:  # also what it raises where it does not find the CUDA libraries it was built for
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--use_8bit_adam needs bitsandbytes, which cannot be imported ({why}): it is in requirements-gpu.txt"
        ) from None
    return bitsandbytes


class ExponentialMovingAverage:
    """avg <- d avg + (1 - d) weights after each applied step, with d = min(decay, (1 + step) / (10 + step)).

    Without this warm-up the average of a short run would be mostly its initial weights.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """`step` counts the updates before this one. A skipped step moves nothing; the host does not ask which."""
        decay = min(self.decay, (1 + step) / (10 + step))
        fraction = (1 - decay) * (~skipped).float()
        averages = list(self.tensors.values())
        weights: list[Tensor] = list(self.named.values())
        difference: list[Tensor] = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(difference, fraction)
        torch._foreach_add_(averages, difference)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the average takes the place of the weights."""
        own = {name: p.detach().clone() for name, p in self.named.items()}
        self._assign(self.tensors)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self.named.items():
            p.copy_(tensors[name])


class LossScaler:
    """Dynamic loss scaling for gradients that cross a float16 model, without a word from the device to the host.

    Small gradients underflow in float16, so the loss is multiplied by a scale and the gradients divided by it. The
    scale halves when a gradient overflows and doubles after `growth_interval` applied steps. An overflow is no
    fault of the run unless the scale is at its minimum.
    """

    INITIAL, MINIMUM, MAXIMUM = 2.0**14, 1.0, 2.0**24

    def __init__(self, device: torch.device | str, growth_interval: int = 1000) -> None:
        self.growth_interval = growth_interval
        self.scale = torch.tensor(self.INITIAL, device=device)
        self.applied_steps = torch.tensor(0.0, device=device)
        """Since the scale last changed, or a step was last skipped."""

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        torch._foreach_mul_(list(gradients), 1 / self.scale)  # a power of two: exact

    def update(self, norm: Tensor, loss_is_bad: Tensor) -> Tensor:
        """Adapt the scale to the norm of the unscaled gradient; returns whether it overflowed."""
        overflowed = ~torch.isfinite(norm) & ~loss_is_bad & (self.scale > self.MINIMUM)
        skipped = overflowed | loss_is_bad | ~torch.isfinite(norm)
        applied = torch.where(skipped, torch.zeros_like(self.applied_steps), self.applied_steps + 1)
        grows = applied >= self.growth_interval
        grown = torch.where(grows, (2 * self.scale).clamp(max=self.MAXIMUM), self.scale)
        self.scale = torch.where(overflowed, (self.scale / 2).clamp(min=self.MINIMUM), grown)
        self.applied_steps = torch.where(grows, torch.zeros_like(applied), applied)
        return overflowed

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "applied_steps": self.applied_steps}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        device = self.scale.device
        self.scale, self.applied_steps = tensors["scale"].to(device), tensors["applied_steps"].to(device)


class Update:
    """One optimizer step at a time. A step that is not finite is skipped on the device: the host never asks.

    Except for 8-bit AdamW, which has no `found_inf`.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], settings: TrainSettings, loss_scaler: LossScaler | None = None
    ) -> None:
        self.named = {name: p for group in groups for name, p in group.named.items()}
        self.parameters = list(self.named.values())
        if not self.parameters:
            raise UserError("nothing is trained: every parameter is frozen")
        half = sorted({str(p.dtype) for p in self.parameters if p.dtype != torch.float32})
        if half:
            raise UserError(f"trained weights must be float32, not {', '.join(half)}")
        self.settings, self.loss_scaler = settings, loss_scaler
        self.limited = [(p, group.limits) for group in groups if group.limits for p in group.named.values()]
        self.clip = settings.max_grad_norm or float("inf")
        self.eight_bit = settings.use_8bit_adam
        self.average = ExponentialMovingAverage(self.named, settings.ema_decay) if settings.ema_decay else None
        options: dict[str, Any] = {
            "lr": settings.learning_rate,
            "betas": (settings.adam_beta1, settings.adam_beta2),
            "eps": settings.adam_epsilon,
            "weight_decay": settings.adam_weight_decay,
        }
        param_groups = [
            {
                "params": list(group.named.values()),
                "weight_decay": settings.adam_weight_decay if group.decays else 0.0,
                "peak": settings.learning_rate if group.learning_rate is None else group.learning_rate,
            }
            for group in groups
        ]
        self.adam: torch.optim.Optimizer
        if self.eight_bit:
            self.adam = _eight_bit_adamw(param_groups, **options)
        else:
            self.adam = torch.optim.AdamW(param_groups, **options, fused=True)  # no other takes `found_inf`

    @property
    def bytes_per_parameter(self) -> int:
        """The weight, its gradient, two moments, and its average."""
        return 4 + 4 + (2 if self.eight_bit else 8) + (0 if self.average is None else 4)

    def backward(self, loss: Tensor) -> None:
        (loss if self.loss_scaler is None else loss * self.loss_scaler.scale).backward()

    def average_gradients(self, processes: Processes) -> None:
        """One exchange per step, however many micro-batches it had. A parameter without gradient counts as zero."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if processes.count == 1:
            return
        gradients = self._gradients()
        averaged = processes.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = averaged.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def apply(self, step: int, loss_is_bad: Tensor) -> tuple[Tensor, Tensor]:
        """The update after `step` updates: the gradient's norm before clipping, and what became of the step."""
        if self.loss_scaler is not None:
            self.loss_scaler.unscale(self._gradients())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        skipped = loss_is_bad | ~torch.isfinite(norm)
        for group in self.adam.param_groups:
            group["lr"] = self.settings.learning_rate_at(step, group["peak"])
        if not self.eight_bit:
            self.adam.found_inf = skipped.float()  # type: ignore[attr-defined]
            self.adam.step()
        # A step by zero gradients would still decay weights and moments.
        elif not bool(skipped):
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for p, (least, largest) in self.limited:
                p.clamp_(least, largest)
        if self.average is not None:
            self.average.update(step, skipped)
        status = torch.where(skipped, BAD, APPLIED)
        if self.loss_scaler is not None:
            status = torch.where(self.loss_scaler.update(norm, loss_is_bad), OVERFLOWED, status)
        return norm, status

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their average, if one is kept."""
        return nullcontext() if self.average is None else self.average.swapped_in()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds."""
        moments = {
            f"{name}|{key}": self._storable(value)
            for name, p in self.named.items()
            for key, value in self.adam.state[p].items()
        }
        groups: dict[str, dict[str, Tensor]] = {"weights": dict(self.named), "moments": moments}
        if self.average is not None:
            groups["average"] = self.average.tensors
        if self.loss_scaler is not None:
            groups["loss_scale"] = self.loss_scaler.tensors()
        return groups

    def restore(self, groups: CheckpointTensors, where: str, reset_moments: bool = False) -> None:
        self._require_same_shapes(groups, "weights", where)
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(groups["weights"][name])
        if self.average is not None:
            self._require_same_shapes(groups, "average", where)
            self.average.restore(groups["average"])
        if self.loss_scaler is not None and "loss_scale" in groups:
            if groups["loss_scale"].keys() != self.loss_scaler.tensors().keys():
                raise UserError(f"the loss scale in the checkpoint {where} is not complete")
            self.loss_scaler.restore(groups["loss_scale"])
        if reset_moments:
            return
        for entry, value in groups.get("moments", {}).items():
            name, _, key = entry.partition("|")
            if name not in self.named or not (key == "step" or self.eight_bit or value.shape == self.named[name].shape):
                raise UserError(f"the checkpoint {where} has AdamW moments {entry!r} that do not fit what is trained")
            p = self.named[name]
            if self.eight_bit or key == "step":
                self.adam.state[p][key] = int(value) if key == "step" and self.eight_bit else value.to(p.device)
            else:
                # In the weight's memory layout: fused AdamW goes through both in the order of their memory.
                self.adam.state[p][key] = torch.empty_like(p).copy_(value)

    def _require_same_shapes(self, groups: CheckpointTensors, group: str, where: str) -> None:
        shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        stored = {name: tuple(value.shape) for name, value in groups.get(group, {}).items()}
        if odd := sorted(shapes.items() ^ stored.items()):
            raise UserError(f"the checkpoint {where} is of another model: {odd[0][0]} is not the same in both")

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _storable(self, value: Tensor | int) -> Tensor:
        """As a file can hold it: bitsandbytes counts in an int, and all parameters share its quantization tables."""
        return torch.as_tensor(value).clone() if self.eight_bit else torch.as_tensor(value)
