"""Ways to turn a network into a denoiser.

`predict(x, t, condition)` is the network; `denoiser(x, t) -> prediction` is what the sampling loop calls. A
guidance is a function that returns a denoiser, built from `predict` or around another denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dpt.backbone import Condition, NoiseSchedule
from dpt.sampling.options import ALWAYS, Guidance

Predict: TypeAlias = Callable[[Tensor, Tensor, Condition], Tensor]

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]

When: TypeAlias = Callable[[Tensor], bool]


def conditional(predict: Predict, condition: Condition) -> Denoiser:
    """The network's own prediction for these prompts, unguided."""
    return lambda x, t: predict(x, t, condition)


def classifier_free(
    predict: Predict,
    condition: Condition,
    negative: Condition,
    scale: float,
    *,
    rescale: float = 0.0,
    when: When = lambda t: True,
) -> Denoiser:
    """Towards the texts and away from the negative ones, at the timesteps chosen; elsewhere `conditional`.

    scale = 1 is the text alone and costs one forward pass instead of two; 0 is the negative text alone.
    """
    plain = conditional(predict, condition)
    if scale == 1:
        return plain
    both = Condition.stack([negative, condition])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        if not when(t):
            return plain(x, t)
        uncond, cond = predict(torch.cat([x, x]), t, both).chunk(2)
        return mix(uncond, cond, scale, rescale)

    return denoiser


def mix(negative: Tensor, positive: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """e_neg + scale (e_text - e_neg), a share `rescale` of it brought to the spread of e_text, picture by picture."""
    guided = negative + scale * (positive - negative)
    if rescale == 0:
        return guided
    wanted, found = (e.std(dim=(1, 2, 3), keepdim=True) for e in (positive, guided))
    return rescale * (guided * (wanted / found)) + (1 - rescale) * guided


def guides_at(guidance: Guidance, noise: NoiseSchedule) -> When:
    """Whether a step at timestep t is guided."""
    if guidance.interval == ALWAYS:
        return lambda t: guidance.scale != 1  # without looking at t, which may have to come from a GPU
    return lambda t: guidance.scale != 1 and guidance.interval.contains(noise.level(float(t)))
