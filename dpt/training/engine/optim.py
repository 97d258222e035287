"""Optimizers, the moving average, and one update of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpt.distributed import mean_over
from dpt.errors import UserError
from dpt.training.engine.settings import Settings


def require_eight_bit(device: torch.device) -> None:
    """Say what is in the way, before anything is loaded or written."""
    if device.type != "cuda":
        raise UserError(f"--use_8bit_adam runs on CUDA devices only, and this run is on {device.type}")
    _bitsandbytes()


def eight_bit_adamw(parameters: Sequence[Tensor], **options: Any) -> torch.optim.Optimizer:
    """Parameters of fewer than 4096 numbers keep moments of 32 bits."""
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
    """avg <- decay avg + (1 - decay) weights, after each step that was applied."""

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.tensors = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def follow(self, bad: Tensor) -> None:
        """A step that was `bad` moves nothing; whether it was is not asked of the device."""
        share = (1 - self.decay) * (~bad).float()
        averages = list(self.tensors.values())
        weights: list[Tensor] = list(self.named.values())
        apart: list[Tensor] = list(torch._foreach_sub(weights, averages))
        torch._foreach_mul_(apart, share)
        torch._foreach_add_(averages, apart)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for weights."""
        own = {name: p.detach().clone() for name, p in self.named.items()}
        self._publish(self.tensors)
        try:
            yield
        finally:
            self._publish(own)

    @torch.no_grad()
    def _publish(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self.named.items():
            p.copy_(tensors[name])


Groups = Mapping[str, Mapping[str, Tensor]]


class Update:
    """AdamW that asks the device for nothing, but for its 8 bits: a step that is not finite is skipped there."""

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        self.named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        if not self.parameters:
            raise UserError("nothing is trained: every parameter is frozen")
        half = sorted({str(p.dtype) for p in self.parameters if p.dtype != torch.float32})
        if half:
            raise UserError(f"what is trained must be float32, not {', '.join(half)}")
        self.clip = settings.max_grad_norm or float("inf")
        self.eight_bit = settings.use_8bit_adam
        chosen: dict[str, Any] = {
            "lr": settings.learning_rate,
            "betas": (settings.adam_beta1, settings.adam_beta2),
            "eps": settings.adam_epsilon,
            "weight_decay": settings.adam_weight_decay,
        }
        self.average = ExponentialMovingAverage(self.named, settings.ema_decay) if settings.ema_decay else None
        self.adam: torch.optim.Optimizer
        if self.eight_bit:
            self.adam = eight_bit_adamw(self.parameters, **chosen)
        else:
            self.adam = torch.optim.AdamW(self.parameters, **chosen, fused=True)  # no other takes `found_inf`

    @property
    def bytes_each(self) -> int:
        """Of a trained number: itself, its gradient, two moments, and its average."""
        return 4 + 4 + (2 if self.eight_bit else 8) + (0 if self.average is None else 4)

    def average_gradients(self, accelerator: Accelerator) -> None:
        """One exchange per step, however many micro-batches it had. A parameter without gradient counts as zero."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        averaged = mean_over(accelerator, flat)
        for gradient, part in zip(gradients, averaged.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def apply(self, rate: float, bad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient's norm before clipping, and whether the step was `bad` and so not applied."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        bad = bad | ~torch.isfinite(norm)
        for group in self.adam.param_groups:
            group["lr"] = rate
        if not self.eight_bit:
            self.adam.found_inf = bad.float()  # type: ignore[attr-defined]
            self.adam.step()
        # bitsandbytes has no `found_inf`, and a step by zeros would still decay weights and moments: so the host asks.
        elif not bool(bad):
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.follow(bad)
        return norm, bad

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their average, if one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        moments = {
            f"{name}|{key}": self._kept(value)
            for name, p in self.named.items()
            for key, value in self.adam.state[p].items()
        }
        kept: dict[str, dict[str, Tensor]] = {"weights": dict(self.named), "moments": moments}
        return kept if self.average is None else {**kept, "average": self.average.tensors}

    def restore(self, groups: Groups, where: str, reset_moments: bool = False) -> None:
        weights = groups.get("weights", {})
        shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        if odd := sorted(shapes.items() ^ {name: tuple(value.shape) for name, value in weights.items()}.items()):
            raise UserError(f"the checkpoint {where} is of another model: {odd[0][0]} is not the same in both")
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(weights[name])
        if self.average is not None:
            self.average.restore(groups["average"])
        if reset_moments:
            return
        for entry, value in groups.get("moments", {}).items():
            name, key = entry.split("|")
            counted = self.eight_bit and key == "step"
            self.adam.state[self.named[name]][key] = int(value) if counted else value.to(self.named[name].device)

    def _kept(self, value: Tensor | int) -> Tensor:
        """As a file can hold it: bitsandbytes counts in an int, and lets all parameters share its tables of numbers."""
        return torch.as_tensor(value).clone() if self.eight_bit else torch.as_tensor(value)
