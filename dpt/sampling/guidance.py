"""Ways to turn a network into a denoiser, and checks that its predictions are finite.

`predict(x, t, condition)` is the network; `denoiser(x, t) -> prediction` is what the sampling loop calls. A
guidance is a function that returns a denoiser, built from `predict` or around another denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from dpt.backbone import Backbone, Condition, NoiseSchedule
from dpt.backbone.base import Grid, ImageSizes
from dpt.errors import UserError
from dpt.sampling.hooks import StepInfo
from dpt.sampling.options import ALWAYS, OWN_SIZE, Guidance, SizeConditions

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
    predict_negative: Predict | None = None,
) -> Denoiser:
    """Classifier-free guidance at the timesteps where `when` holds, `conditional` elsewhere.

    scale = 1 is the prompt alone and costs one forward pass instead of two; 0 is the negative prompt alone.
    `predict_negative` is another network for the negative half, such as one tuned on what to avoid.
    """
    plain = conditional(predict, condition)
    if scale == 1:
        return plain
    both = Condition.stack([negative, condition])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        if not when(t):
            return plain(x, t)
        if predict_negative is not None:
            return combine(predict_negative(x, t, negative), predict(x, t, condition), scale, rescale)
        uncond, cond = predict(torch.cat([x, x]), t, both).chunk(2)
        return combine(uncond, cond, scale, rescale)

    return denoiser


def embed_guidance(
    backbone: Backbone, text: Condition, negative: Condition, guidance: Guidance
) -> tuple[Condition, Condition, Guidance]:
    """For a model that takes the guidance scale as an input: conditions that hold it, and true guidance beside it."""
    if not backbone.guidance_is_embedded:
        return text, negative, guidance
    text, negative = (
        replace(condition, guidance=torch.full((len(condition),), guidance.scale)) for condition in (text, negative)
    )
    return text, negative, replace(guidance, scale=guidance.true_cfg_scale)


def unused_guidance(backbone: Backbone, guidance: Guidance, negative_prompts: Iterable[str]) -> list[str]:
    """A sentence for each part of the guidance that has no effect on this model."""
    if not backbone.guidance_is_embedded:
        unused = "the true CFG scale has no effect: this model is guided by its guidance scale"
        return [unused] if guidance.true_cfg_scale != 1 else []
    if guidance.true_cfg_scale == 1 and any(negative_prompts):
        return [
            "the negative prompt has no effect: this model is distilled and takes the guidance scale as an input; a "
            "true CFG scale above 1 turns classifier-free guidance on, at twice the time"
        ]
    return []


def with_sizes(backbone: Backbone, condition: Condition, sizes: SizeConditions, latent_size: Grid) -> Condition:
    """The prompts with these size conditions, for images from latents of this size; unchanged without any."""
    if sizes == OWN_SIZE or not backbone.takes_sizes:
        return condition
    height, width = (side * backbone.vae_scale_factor for side in latent_size)
    own = height, width
    return condition.with_sizes(
        ImageSizes(sizes.original_size or own, sizes.target_size or own, sizes.crops_coords_top_left)
    )


def unused_sizes(backbone: Backbone, sizes: SizeConditions) -> list[str]:
    """A sentence if size conditions have no effect on this model."""
    if sizes == OWN_SIZE or backbone.takes_sizes:
        return []
    return ["the size conditions have no effect: only Stable Diffusion XL is conditioned on sizes"]


def combine(uncond: Tensor, cond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """e_uncond + scale (e_cond - e_uncond); a fraction `rescale` of it gets the standard deviation of e_cond."""
    guided = uncond + scale * (cond - uncond)
    if rescale == 0:
        return guided
    std_cond, std_guided = (e.std(dim=(1, 2, 3), keepdim=True) for e in (cond, guided))
    return rescale * (guided * (std_cond / std_guided)) + (1 - rescale) * guided


def guides_at(guidance: Guidance, noise: NoiseSchedule) -> When:
    """Whether a step at timestep t is guided."""
    if guidance.interval == ALWAYS:
        return lambda t: guidance.scale != 1  # without looking at t, which may have to come from a GPU
    return lambda t: guidance.scale != 1 and guidance.interval.contains(noise.level(float(t)))


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
