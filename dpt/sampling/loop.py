"""The sampling loop, shared by every scheduler and every guidance of the project."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.sampling.guidance import Denoiser
from dpt.sampling.hooks import StepHook, StepInfo
from dpt.sampling.schedulers import continues_from_its_sample, forget_last_sample, scale_model_input, set_steps


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    steps: int,
    *,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
    on_step: Callable[[], None] | None = None,
    hooks: Sequence[StepHook] = (),
    start: int = 0,
    spacing: Mapping[str, Sequence[float]] | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Sample latents (B,C,h,w) from standard normal noise (B,C,h,w).

    With `start`, the first steps are left out and `noise` is the latents at the noise level of step `start`.

    `generators`, one per image or one for all, are for schedulers that add noise in their steps. Gradients are off; a
    guidance that needs them enables them itself. `spacing` is that of `set_steps`; `eta` is DDIM's, and ignored by
    other schedulers. A hook with `stops` ends the loop.
    """
    set_steps(scheduler, steps, noise.device, (noise.shape[-2], noise.shape[-1]), spacing)
    extra: dict[str, Any] = {}
    if generators and _step_takes(scheduler, "generator"):
        extra["generator"] = _as_expected(generators)
    if eta and _step_takes(scheduler, "eta"):
        extra["eta"] = eta
    z = noise if start else noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for index, t in enumerate(scheduler.timesteps[start:], start):
        step = _step_info(scheduler, index, t, z) if hooks else None
        if step is not None:
            z = _before(z, step, hooks, scheduler)
        x = scale_model_input(scheduler, z, t)
        prediction = denoiser(x, t)
        z = scheduler.step(prediction, t, z, **extra).prev_sample
        if step is not None:
            for hook in hooks:
                z = hook.after(z, step, x, prediction)
        if on_step is not None:
            on_step()
        if any(hook.stops for hook in hooks):
            break
    return z


def _step_info(scheduler: Any, index: int, t: Tensor, z: Tensor) -> StepInfo:
    scale = scale_model_input(scheduler, z.new_ones(1), t)
    return StepInfo(index, len(scheduler.timesteps), t, scale, continues_from_its_sample(scheduler))


def _before(z: Tensor, step: StepInfo, hooks: Sequence[StepHook], scheduler: Any) -> Tensor:
    unmoved = z
    for hook in hooks:
        z = hook.before(z, step)
    if z is not unmoved:
        forget_last_sample(scheduler)
    return z


def _as_expected(generators: Sequence[torch.Generator] | torch.Generator) -> list[torch.Generator] | torch.Generator:
    """diffusers takes a list or one generator."""
    return generators if isinstance(generators, torch.Generator) else list(generators)


def _step_takes(scheduler: Any, argument: str) -> bool:
    return argument in inspect.signature(scheduler.step).parameters
