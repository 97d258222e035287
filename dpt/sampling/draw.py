"""Pictures for a list of requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from dpt.backbone import Backbone, Text
from dpt.backbone.randomness import generator_for
from dpt.errors import UserError
from dpt.sampling.guidance import classifier_free
from dpt.sampling.loop import denoise
from dpt.sampling.schedulers import check_name, make_scheduler, set_steps

INITIAL_NOISE = "initial noise"
STEP_NOISE = "step noise"


@dataclass(frozen=True)
class Request:
    """Picture number `index` of a prompt under a seed."""

    prompt: str
    seed: int
    index: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class Settings:
    """How to draw. A height or width of None is the size the model was trained at."""

    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_name(self.scheduler)
        if self.steps < 1:
            raise UserError(f"the number of steps must be at least 1, not {self.steps}")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"the guidance scale must be a number from 0 up, not {self.guidance_scale}")
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and side < 1:
                raise UserError(f"the {name} must be positive, not {side}")


def draw(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Settings,
    *,
    batch_size: int = 4,
    exact: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Images (3,H,W) on the CPU, in [-1,1] but for overshoot, in the order of the requests.

    A picture is a function of (model, request, settings). On a CPU this holds to the bit when `exact`:
    pictures are then made one at a time, because matrix products and convolutions round differently for one
    sample than for several (about 1e-6 a call in the UNet, 1e-5 in the VAE); on one core that costs about a
    fifth of the speed of large batches. With `exact` off, and on a GPU, it holds up to that rounding.

    `on_step(n)` is called when n pictures have advanced by one call of the denoiser.
    """
    latent_size = backbone.latent_size(settings.height, settings.width)
    calls_per_picture(backbone, settings)
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")
    if exact and backbone.device.type == "cpu":
        batch_size = 1
    return _draw_batches(backbone, requests, settings, latent_size, batch_size, on_step)


def calls_per_picture(backbone: Backbone, settings: Settings) -> int:
    """How many calls of the denoiser one picture takes."""
    available = backbone.noise.num_timesteps
    if settings.steps > available:
        raise UserError(f"the model has {available} noise levels, too few for {settings.steps} steps")
    return set_steps(make_scheduler(settings.scheduler, backbone.scheduler_config), settings.steps)


def _draw_batches(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: Settings,
    latent_size: tuple[int, int],
    batch_size: int,
    on_step: Callable[[int], None] | None,
) -> Iterator[Tensor]:
    # One prompt at a time, so that a prompt's states do not depend on its neighbours either.
    encode = lru_cache(maxsize=64)(lambda prompt: backbone.encode_text([prompt]))
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        denoiser = classifier_free(
            backbone.predict,
            Text.stack([encode(one.prompt) for one in batch]).states,
            Text.stack([encode(one.negative_prompt) for one in batch]).states,
            settings.guidance_scale,
        )
        latents = denoise(
            denoiser,
            make_scheduler(settings.scheduler, backbone.scheduler_config),
            initial_noise(backbone, batch, latent_size),
            settings.steps,
            generators=[generator_for(one.seed, one.index, STEP_NOISE) for one in batch],
            on_step=None if on_step is None else partial(on_step, len(batch)),
        )
        with torch.no_grad():
            yield from backbone.decode_latents(latents).cpu()


def initial_noise(backbone: Backbone, requests: Sequence[Request], latent_size: tuple[int, int]) -> Tensor:
    """Standard normal noise (B,C,h,w), a row per request, made on the CPU."""
    shape = (backbone.latent_channels, *latent_size)
    rows = [
        torch.randn(shape, generator=generator_for(one.seed, one.index, INITIAL_NOISE)) for one in requests
    ]
    return torch.stack(rows).to(backbone.device)
