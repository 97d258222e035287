"""Latents that are not finite: which part of the sampler is at fault."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition
from dpt.errors import UserError
from dpt.sampling.hooks import StepInfo
from dpt.sampling.options import Guidance

LARGEST_PREDICTION = 1e3
"""Networks predict values of about 1; guidance multiplies them by its scale."""


def check_finite(latents: Tensor, step: StepInfo, explain: Callable[[], str]) -> None:
    """Raise with a reason if any value is NaN or infinite."""
    if not bool(latents.isfinite().all()):
        raise UserError(f"the latents are no longer finite after step {step.index + 1} of {step.count}: {explain()}")


def is_plausible(prediction: Tensor) -> bool:
    """Whether a prediction from noise is finite and of a size that sampling can use."""
    return bool((prediction.abs() < LARGEST_PREDICTION).all())


@torch.no_grad()
def explain_denoiser(backbone: Backbone, text: Condition, x: Tensor, t: Tensor, guidance: Guidance) -> str:
    """Why guided predictions from noise are not usable: the guidance scale, or the model."""
    if guidance.scale != 1 and bool(backbone.predict(x, t, text).isfinite().all()):
        return f"the guidance scale {guidance.scale:g} is too large"
    return f"the model's own predictions are not finite: its weights, its LoRA or its number format ({backbone.dtype})"
