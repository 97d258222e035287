"""Images for a list of requests, and the refiner of Stable Diffusion XL as image to image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from dpt.adapter import Adapter
from dpt.backbone import Backbone, Condition
from dpt.backbone.rng import generator_for
from dpt.backbone.sdxl import AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE, SDXLRefiner
from dpt.errors import UserError
from dpt.generation_defaults import MAX_SIDE
from dpt.sampling.guidance import (
    Predict,
    StepHook,
    classifier_free,
    explain_denoiser,
    unused_guidance,
    unused_sizes,
    with_sizes,
)
from dpt.sampling.loop import denoise
from dpt.sampling.options import ALWAYS, NO_CORRECTION, OWN_SIZE, Correction, Guidance, Interval, SizeConditions
from dpt.sampling.schedulers import check_name, make_scheduler, set_steps
from dpt.sampling.self_correction import check_correction, guided
from dpt.score.matching import CLEAN_NOISE_LEVELS, Scorer

INITIAL_NOISE = "initial noise"

STEP_NOISE = "step noise"


@dataclass(frozen=True)
class Request:
    """Image number `index` of a prompt under a seed."""

    prompt: str
    seed: int
    index: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample. A height or width of None is the size the model was trained at."""

    steps: int = 25
    guidance_scale: float = 7.5
    scheduler: str = "ddim"
    height: int | None = None
    width: int | None = None
    guidance_interval: Interval = ALWAYS
    guidance_rescale: float = 0.0
    correction: Correction = NO_CORRECTION
    true_cfg_scale: float = 1.0
    """Of a model that takes the guidance scale as an input of its network."""
    sizes: SizeConditions = OWN_SIZE

    def __post_init__(self) -> None:
        check_name(self.scheduler)
        if self.steps < 1:
            raise UserError(f"the number of steps must be at least 1, not {self.steps}")
        _ = self.guidance
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and not 1 <= side <= MAX_SIDE:
                raise UserError(f"the {name} must be between 1 and {MAX_SIDE}, not {side}")

    @property
    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale, self.guidance_interval, self.guidance_rescale, self.true_cfg_scale)


@dataclass(frozen=True)
class SampledBatch:
    """Images that were sampled together, not decoded yet."""

    requests: Sequence[Request]
    text: Condition
    latents: Tensor  # (B,C,h,w)

    def decode(self, backbone: Backbone) -> Tensor:
        """Images (B,3,H,W) on the CPU."""
        with torch.no_grad():
            return backbone.decode_latents(self.latents).cpu()


MakeHook = Callable[[Sequence[Request], Condition], StepHook]
"""Makes a step hook for a batch of requests."""


def draw(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    adapter: Adapter | None = None,
    batch_size: int = 4,
    exact: bool = True,
    on_step: Callable[[int], None] | None = None,
    predict_negative: Predict | None = None,
) -> Iterator[Tensor]:
    """Images (3,H,W) on the CPU, in [-1,1] up to overshoot, in the order of the requests.

    An image is a function of (model, request, settings). On a CPU with `exact` this holds bit for bit: images are
    sampled one at a time, since matrix products and convolutions round differently for one sample than for several
    (about 1e-6 a call in the UNet, 1e-5 in the VAE). That costs about a fifth of the speed of large batches on one
    core. Without `exact`, and on a GPU, it holds up to that rounding.

    `on_step(n)` is called when n images have advanced by one call of the denoiser. A correction needs `adapter`.
    `predict_negative` is another network for the negative half of guidance.
    """
    batches = draw_latents(
        backbone,
        requests,
        settings,
        adapter=adapter,
        batch_size=batch_size,
        exact=exact,
        on_step=on_step,
        predict_negative=predict_negative,
    )
    return (image for batch in batches for image in batch.decode(backbone))


def draw_latents(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    adapter: Adapter | None = None,
    batch_size: int = 4,
    exact: bool = True,
    on_step: Callable[[int], None] | None = None,
    make_hook: MakeHook | None = None,
    predict_negative: Predict | None = None,
) -> Iterator[SampledBatch]:
    """Like `draw`, but a batch at a time and not decoded."""
    latent_size = backbone.latent_size(settings.height, settings.width)
    calls_per_picture(backbone, settings)
    for sentence in unused_guidance(backbone, settings.guidance, (request.negative_prompt for request in requests)):
        warnings.warn(sentence, stacklevel=2)
    for sentence in unused_sizes(backbone, settings.sizes):
        warnings.warn(sentence, stacklevel=2)
    if settings.correction.on and adapter is None:
        raise UserError("a correction needs an adapter, and there is none")
    scorer = Scorer(backbone, adapter) if settings.correction.on and adapter is not None else None
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")
    if exact and backbone.device.type == "cpu":
        batch_size = 1
    return _draw_batches(
        backbone, requests, settings, latent_size, scorer, batch_size, on_step, make_hook, predict_negative
    )


def calls_per_picture(backbone: Backbone, settings: SamplingSettings, scheduler: Any = None) -> int:
    """How many calls of the denoiser one image takes. The scheduler is the named one of the settings if not given."""
    available = backbone.noise.num_timesteps
    if settings.steps > available:
        raise UserError(f"the model has {available} noise levels, too few for {settings.steps} steps")
    if scheduler is None:
        scheduler = make_scheduler(settings.scheduler, backbone.scheduler_config)
    check_correction(settings.correction, scheduler)
    return set_steps(scheduler, settings.steps)


def intervals_without_a_step(backbone: Backbone, settings: SamplingSettings) -> list[str]:
    """A sentence for guidance and for a correction whose interval holds no step."""
    scheduler = make_scheduler(settings.scheduler, backbone.scheduler_config)
    set_steps(scheduler, settings.steps)
    steps = [backbone.noise.level(float(t)) for t in scheduler.timesteps]
    guidance, correction = settings.guidance, settings.correction
    sentences = []
    if guidance.scale != 1 and not any(guidance.interval.contains(level) for level in steps):
        sentences.append(f"nothing is guided: no step is in {guidance.interval} of the way")
    movable = steps[:-1] if correction.target == "fused" else steps  # fused moves the latents after a step
    if correction.on and not any(correction.interval.contains(level) for level in movable):
        where = f"no step that {correction.target} could move is in {correction.interval} of the way"
        sentences.append(f"nothing is corrected: {where}")
    return sentences


def _draw_batches(
    backbone: Backbone,
    requests: Sequence[Request],
    settings: SamplingSettings,
    latent_size: tuple[int, int],
    scorer: Scorer | None,
    batch_size: int,
    on_step: Callable[[int], None] | None,
    make_hook: MakeHook | None,
    predict_negative: Predict | None,
) -> Iterator[SampledBatch]:
    # One prompt at a time, so that a prompt's states do not depend on its neighbours either.
    encode = lru_cache(maxsize=64)(lambda prompt: backbone.encode_text([prompt]))
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        text, negative = (
            with_sizes(backbone, Condition.stack([encode(prompt) for prompt in prompts]), settings.sizes, latent_size)
            for prompts in ([r.prompt for r in batch], [r.negative_prompt for r in batch])
        )
        noise = initial_noise(backbone, batch, latent_size)
        denoiser, hooks = guided(
            backbone, text, negative, settings.guidance, settings.correction, scorer, predict_negative
        )
        latents = denoise(
            denoiser,
            make_scheduler(settings.scheduler, backbone.scheduler_config),
            noise,
            settings.steps,
            generators=[generator_for(request.seed, request.index, STEP_NOISE) for request in batch],
            on_step=None if on_step is None else partial(on_step, len(batch)),
            hooks=hooks if make_hook is None else (*hooks, make_hook(batch, text)),
        )
        if not bool(latents.isfinite().all()):
            t = torch.tensor(backbone.noise.num_timesteps - 1, device=noise.device)
            raise UserError(
                f"the latents of {batch[0].prompt!r} are not finite: "
                f"{explain_denoiser(backbone, text, noise, t, settings.guidance)}"
            )
        yield SampledBatch(batch, text, latents)


def initial_noise(backbone: Backbone, requests: Sequence[Request], latent_size: tuple[int, int]) -> Tensor:
    """Standard normal noise (B,C,h,w), a row per request, made on the CPU."""
    shape = (backbone.latent_channels, *latent_size)
    rows = [
        torch.randn(shape, generator=generator_for(request.seed, request.index, INITIAL_NOISE)) for request in requests
    ]
    return torch.stack(rows).to(backbone.device)


@dataclass(frozen=True)
class Candidate:
    request: Request
    latents: Tensor  # (1,C,h,w)
    score: float

    def decode(self, backbone: Backbone) -> Tensor:
        """(3,H,W) on the CPU; decoded alone, so it does not depend on the batch."""
        return backbone.decode_latents(self.latents)[0].detach().cpu()


def scored(
    batches: Iterable[SampledBatch], scorer: Scorer, noise_levels: Sequence[float] = CLEAN_NOISE_LEVELS
) -> Iterator[Candidate]:
    """Each image with its score; a batch is scored together."""
    for batch in batches:
        scores = scorer.clean_score(batch.latents, batch.text, noise_levels).tolist()
        for row, (request, score) in enumerate(zip(batch.requests, scores, strict=True)):
            yield Candidate(request, batch.latents[row : row + 1], score)


def best(candidates: Iterable[Candidate], keep: int) -> list[Candidate]:
    """The `keep` candidates of highest score, highest first; ties keep the order of the requests."""
    return sorted(candidates, key=lambda candidate: -candidate.score)[:keep]


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
