"""From an image's latents back to noise: a trajectory that sampling can follow, cell by cell.

A trajectory is a list of N + 1 latents (B,C,h,w) for N sampling steps: entry k is the input of step k, the last entry
is the clean latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition, NoiseSchedule
from dpt.sampling.hooks import StepHook, StepInfo

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
