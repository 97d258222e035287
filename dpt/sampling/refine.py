"""The refiner of Stable Diffusion XL as image to image: it adds some noise to finished latents and removes it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpt.backbone.rng import generator_for
from dpt.backbone.sdxl import AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE, SDXLRefiner
from dpt.errors import UserError
from dpt.sampling.draw import SampledBatch, SamplingSettings
from dpt.sampling.guidance import classifier_free
from dpt.sampling.loop import denoise
from dpt.sampling.schedulers import make_scheduler, set_steps

REFINER_NOISE, REFINER_STEP_NOISE = "refiner noise", "refiner step noise"


def check_strength(strength: float, steps: int) -> None:
    if not 0 < strength < 1 or int(steps * strength) < 1:
        raise UserError(
            f"--refiner_strength is above 0 and below 1, and leaves at least one of {steps} steps, not {strength:g}"
        )


@torch.no_grad()
def refine(
    refiner: SDXLRefiner,
    latents: Tensor,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    noise: Tensor,
    settings: SamplingSettings,
    strength: float,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Latents (B,C,h,w) noised to where the last `strength` of the steps begins, and denoised by these steps."""
    check_strength(strength, settings.steps)
    scheduler = make_scheduler(settings.scheduler, refiner.scheduler_config)
    set_steps(scheduler, settings.steps, latents.device)
    start = (settings.steps - int(settings.steps * strength)) * getattr(scheduler, "order", 1)
    first = scheduler.timesteps[start : start + 1].expand(len(latents))
    noisy = scheduler.add_noise(latents, noise, first)
    size = latents.shape[-2], latents.shape[-1]
    text, negative = (
        refiner.with_score(refiner.encode_text(own), score, size)
        for own, score in ((prompts, AESTHETIC_SCORE), (negative_prompts, NEGATIVE_AESTHETIC_SCORE))
    )
    denoiser = classifier_free(
        refiner.predict, text, negative, settings.guidance_scale, rescale=settings.guidance_rescale
    )
    return denoise(denoiser, scheduler, noisy, settings.steps, generators=generators, start=start)


def refine_batch(
    refiner: SDXLRefiner, batch: SampledBatch, settings: SamplingSettings, strength: float
) -> SampledBatch:
    """The batch with refined latents; the noise depends on seed and index alone."""
    requests, shape = batch.requests, batch.latents.shape[1:]
    noise = [torch.randn(shape, generator=generator_for(r.seed, r.index, REFINER_NOISE)) for r in requests]
    latents = refine(
        refiner,
        batch.latents,
        [request.prompt for request in requests],
        [request.negative_prompt for request in requests],
        torch.stack(noise).to(batch.latents.device),
        settings,
        strength,
        [generator_for(r.seed, r.index, REFINER_STEP_NOISE) for r in requests],
    )
    return SampledBatch(requests, batch.text, latents)
