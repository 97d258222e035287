"""The sampling loop: every sampler and every guidance of the project runs through these lines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.sampling.guidance import Denoiser
from dpt.sampling.schedulers import set_steps


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    steps: int,
    *,
    generators: Sequence[torch.Generator] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """z_0 (B,C,h,w) from standard normal noise (B,C,h,w).

    `generators`, one per image, serve schedulers that add noise on the way. Gradients are off; a guidance
    that needs one switches them on for itself.
    """
    set_steps(scheduler, steps, noise.device)
    extra = {"generator": list(generators)} if generators and _takes_generator(scheduler) else {}
    z = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = denoiser(scheduler.scale_model_input(z, t), t)
        z = scheduler.step(prediction, t, z, **extra).prev_sample
        if on_step is not None:
            on_step()
    return z


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters
