"""The sampling loop: every sampler and every guidance of the project runs through these lines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.sampling.guidance import Denoiser
from dpt.sampling.hooks import StepHook, StepInfo
from dpt.sampling.schedulers import goes_on_from_its_sample, sample_was_moved, set_steps


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    steps: int,
    *,
    generators: Sequence[torch.Generator] | torch.Generator | None = None,
    on_step: Callable[[], None] | None = None,
    around: Sequence[StepHook] = (),
) -> Tensor:
    """z_0 (B,C,h,w) from standard normal noise (B,C,h,w).

    `generators`, one per image or one for all, serve schedulers that add noise on the way. Gradients are off; a
    guidance that needs one switches them on for itself.
    """
    set_steps(scheduler, steps, noise.device)
    extra = {"generator": _as_asked(generators)} if generators and _takes_generator(scheduler) else {}
    z = noise * scheduler.init_noise_sigma
    for index, t in enumerate(scheduler.timesteps):
        call = _call(scheduler, index, t, z) if around else None
        if call is not None:
            z = _before(z, call, around, scheduler)
        x = scheduler.scale_model_input(z, t)
        prediction = denoiser(x, t)
        z = scheduler.step(prediction, t, z, **extra).prev_sample
        if call is not None:
            for one in around:
                z = one.after(z, call, x, prediction)
        if on_step is not None:
            on_step()
    return z


def _call(scheduler: Any, index: int, t: Tensor, z: Tensor) -> StepInfo:
    scale = scheduler.scale_model_input(z.new_ones(1), t)
    return StepInfo(index, len(scheduler.timesteps), t, scale, goes_on_from_its_sample(scheduler))


def _before(z: Tensor, call: StepInfo, around: Sequence[StepHook], scheduler: Any) -> Tensor:
    given = z
    for one in around:
        z = one.before(z, call)
    if z is not given:
        sample_was_moved(scheduler)
    return z


def _as_asked(generators: Sequence[torch.Generator] | torch.Generator) -> list[torch.Generator] | torch.Generator:
    return generators if isinstance(generators, torch.Generator) else list(generators)


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters
