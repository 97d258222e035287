"""Ways to turn a network into a denoiser.

`predict(x, t, states)` is the network; `denoiser(x, t) -> prediction` is what the sampling loop calls. A
guidance is a function that returns a denoiser, built from `predict` or around another denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Predict: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def conditional(predict: Predict, states: Tensor) -> Denoiser:
    """The network's own prediction for these texts, unguided."""
    return lambda x, t: predict(x, t, states)


def classifier_free(predict: Predict, states: Tensor, negative_states: Tensor, scale: float) -> Denoiser:
    """e = e_neg + scale (e_text - e_neg): Ho and Salimans 2022, the scale as Stable Diffusion counts it.

    scale = 1 is the text alone and costs one forward pass instead of two; 0 is the negative text alone.
    """
    if scale == 1:
        return conditional(predict, states)
    both = torch.cat([negative_states, states])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        negative, positive = predict(torch.cat([x, x]), t, both).chunk(2)
        return negative + scale * (positive - negative)

    return denoiser
