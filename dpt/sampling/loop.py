"""The sampling loop, shared by every scheduler and guidance; and inversion, from an image's latents back to noise.

A trajectory is a list of N + 1 latents (B,C,h,w) for N sampling steps: entry k is the input of step k, the last entry
is the clean latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition, NoiseSchedule
from dpt.sampling.guidance import Denoiser, StepHook, StepInfo
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


Trajectory = Sequence[Tensor]


def noised_trajectory(noise: NoiseSchedule, latents: Tensor, eps: Tensor, timesteps: Tensor) -> list[Tensor]:
    """The latents with the same noise eps (B,C,h,w) at every level: no call of the network."""
    return [*(noise.add_noise(latents, eps, t.expand(len(latents))) for t in timesteps), latents]


@torch.no_grad()
def inverted_trajectory(
    backbone: Backbone,
    latents: Tensor,
    condition: Condition,
    timesteps: Tensor,
    on_call: Callable[[], None] | None = None,
) -> list[Tensor]:
    """DDIM's steps in reverse, without guidance: a call of the network per step.

    As in diffusers' DDIMInverseScheduler: the step to level t uses the prediction at t for latents of the level
    below. The clean latents count as level 0.
    """
    noise, z, below = backbone.noise, latents, torch.zeros_like(timesteps[0])
    trajectory = [latents]
    for t in timesteps.flip(0):
        output = backbone.predict(z, t, condition)
        level = below.expand(len(z))
        z = noise.add_noise(noise.x0(z, output, level), noise.eps(z, output, level), t.expand(len(z)))
        below = t
        trajectory.insert(0, z)
        if on_call is not None:
            on_call()
    return trajectory


FRESH = -1
"""Release step of a cell that starts from pure noise."""


class FollowTrajectory(StepHook):
    """Keeps each cell on the trajectory until its release step; N keeps it to the end.

    `release` (1,1,h,w) holds integers: a cell released at k is the trajectory's up to the input of step k.
    """

    def __init__(self, trajectory: Trajectory, release: Tensor) -> None:
        self.trajectory, self.release = trajectory, release

    @property
    def start(self) -> int:
        """The step before which every cell is the trajectory's."""
        return min(max(0, int(self.release.min())), len(self.trajectory) - 1)

    def initial(self, noise: Tensor) -> Tensor:
        """The input of step `start`; fresh cells get the noise."""
        return torch.where(self.release == FRESH, noise, self.trajectory[self.start])

    def after(self, z: Tensor, step: StepInfo, x: Tensor, prediction: Tensor) -> Tensor:
        following = step.index + 1
        return torch.where(self.release >= following, self.trajectory[following], z)
